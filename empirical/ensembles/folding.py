"""Weights of a traced network as they take part in the computation.

A network may compute a weight from its parameters: times a mask (``torch.nn.utils.prune``, masked layers),
divided by a norm, scaled. What pruning has removed, and what it may still remove, are entries of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

# Operations that hand on their input: only where its entries lie, or their number type, changes.
_VIEWS = {"permute", "transpose", "t", "numpy_T", "view", "reshape", "unsqueeze", "squeeze", "flatten"}
_VIEWS |= {"expand"}
_CUTS = {"detach", "detach_"}
_SAME = {"alias", "lift_fresh_copy"}
_CASTS = {"to", "_to_copy", "type_as"}
# Operations that say what must hold of a tensor, such as its number type when the network was traced.
_CHECKS = ("_assert", "_guards", "sym_constrain", "_check")
# Operations that multiply values by a weight, and those of them that take it last, as (inputs, outputs).
_TRANSPOSED = {"mm", "matmul", "addmm"}
_CONVOLUTIONS = {"convolution", *(f"conv{kind}{k}d" for kind in ("", "_transpose") for k in (1, 2, 3))}
_PRODUCTS = {"linear", "bilinear", "bmm", "einsum", "lstm", "gru", "rnn_relu", "rnn_tanh"}
_PRODUCTS |= _TRANSPOSED | _CONVOLUTIONS
# Operations that make a constant out of nothing, the same whenever they are called.
_MADE = {"ones", "zeros", "full", "eye", "arange", "linspace", "scalar_tensor", "tril_indices"}
# Bytes of a constant that is evaluated: masks and ranges, not what a few words could ask for.
_LARGEST = 2**28


def fold(module: GraphModule, *, cut: bool) -> dict[str, Tensor]:
    """Make every weight of the network one parameter, in place; these by name, as (outputs, inputs, ...).

    A weight is what a linear layer, matrix product or convolution multiplies its input by, if it comes from a
    parameter. One that is computed from parameters becomes a parameter itself, named like the first of them
    if nothing else needs that; other constants become buffers. Checks of number types go, and so does what
    converts between float32, float64 and the input's type: the network computes in the precision that it is
    given. Without ``cut``, what cuts gradients goes too.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not node.users and name_of(node).startswith(_CHECKS):
            graph.erase_node(node)
    constants = _Constants(module)
    inputs = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    wide = {torch.float32, torch.float64, *(x.dtype for x in inputs if isinstance(x, Tensor))}
    weights: dict[Node, Tensor] = {}
    sources: dict[Node, str] = {}  # of those that were computed
    for node in list(graph.nodes):
        name = name_of(node)
        if node.op != "call_function" or constants.has(node):
            continue
        if (name in _SAME | _CASTS and _exact(node, wide)) or (name in _CUTS and not cut):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
            continue
        for argument in node.all_input_nodes:
            weighs = name in _PRODUCTS and not (name == "addmm" and argument is node.args[0])
            root = argument
            while weighs and name_of(root) in _VIEWS | _SAME | _CUTS:
                root = root.all_input_nodes[0]
            if not constants.has(argument):  # maybe a view for as many examples as there are
                if weighs and root in constants.registered and constants.sources[root]:
                    weights.setdefault(root, constants.value(root).detach())
                continue
            value = constants.value(argument).detach()
            weighs = weighs and bool(constants.sources[argument]) and value.dim() >= 2
            if root not in constants.registered or (weighs and constants.value(root).dim() < 2):
                root = _stored(module, argument, value, f"folded_{len(constants.registered)}", weighs=weighs)
                constants.add(root, constants.sources[argument])
                if weighs:
                    sources[root] = constants.sources[argument][0]
            if weighs:
                whole = constants.value(root).detach()
                turned = name in _TRANSPOSED and argument is node.args[-1]
                if value.numel() == whole.numel():
                    whole = value.mT if turned else value
                weights.setdefault(root, whole)
    graph.eliminate_dead_code()
    needed = {node.target for node in graph.nodes if node.op == "get_attr"}
    for node, source in sources.items():
        if source not in needed:
            owner, _, name = source.rpartition(".")
            setattr(module.get_submodule(owner), name, getattr(module, str(node.target)))
            delattr(module, str(node.target))
            node.target = source
            needed.add(source)
    module.recompile()
    return {str(node.target): value for node, value in weights.items()}


def _stored(module: GraphModule, node: Node, value: Tensor, name: str, *, weighs: bool) -> Node:
    """A node of a new parameter or buffer that holds the value of such a node, in its place everywhere."""
    if weighs:
        module.register_parameter(name, nn.Parameter(value.clone(memory_format=torch.contiguous_format)))
    else:
        module.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
    with module.graph.inserting_before(node):
        root = module.graph.get_attr(name)
    node.replace_all_uses_with(root)
    return root


class _Constants:
    """What a network computes from its parameters and buffers alone, evaluated when it is asked for.

    ``sources`` are the names of the parameters from which each such node is computed, ``registered`` the
    nodes of parameters and buffers themselves.
    """

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        self._values: dict[Node, Tensor] = {}
        self.sources: dict[Node, list[str]] = {}
        self.registered: set[Node] = set()
        for node in module.graph.nodes:
            if node.op == "get_attr" and isinstance(self.value(node), Tensor):
                self.sources[node] = [str(node.target)] if node.target in parameters else []
                if node.target in parameters or node.target in buffers:
                    self.registered.add(node)
            elif node.op == "call_function" and self._determined(node):
                sources = [name for before in node.all_input_nodes for name in self.sources[before]]
                self.sources[node] = list(dict.fromkeys(sources))

    def _determined(self, node: Node) -> bool:
        """Whether the operation gives the same new tensor, computed from constants, whenever it is called."""
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        known = all(before in self.sources for before in node.all_input_nodes)
        made = bool(node.all_input_nodes) or name_of(node) in _MADE
        sized = all(map(_sized, tree_leaves(node.meta.get("val"))))
        return known and made and sized and not drawn and not in_place(node) and not _symbolic(node)

    def add(self, node: Node, sources: list[str]) -> None:
        """A new parameter or buffer."""
        self.sources[node] = sources
        self.registered.add(node)

    def has(self, node: Node) -> bool:
        """Whether the node's value does not depend on the input."""
        return node in self.sources

    def value(self, node: Node) -> Tensor:
        """The value of such a node."""
        if node not in self._values:
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                return getattr(self._module.get_submodule(owner), name)
            arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), self.value)
            assert callable(node.target)  # a call_function
            with torch.no_grad():
                self._values[node] = node.target(*arguments, **keywords)
        return self._values[node]


def in_place(node: Node) -> bool:
    """Whether the operation changes its first argument."""
    return node.op == "call_function" and name_of(node).endswith("_") and name_of(node) not in _CUTS


def _symbolic(node: Node) -> bool:
    """Whether an argument hangs on the number of examples."""
    return any(isinstance(leaf, torch.SymInt) for leaf in tree_leaves((node.args, node.kwargs)))


def _sized(value: object) -> bool:
    """Whether it is a tensor of a known, moderate size."""
    if not isinstance(value, Tensor) or not all(isinstance(side, int) for side in value.shape):
        return False
    return value.numel() * value.element_size() <= _LARGEST


def _exact(node: Node, wide: set[torch.dtype]) -> bool:
    """Whether a value is of one of these types before and after the node."""
    values: list[Any] = [n.meta.get("val") for n in (node.all_input_nodes[0], node)]
    return all(isinstance(value, Tensor) and value.dtype in wide for value in values)


def name_of(node: Node) -> str:
    """The name of a node's operation, without its overload."""
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]
