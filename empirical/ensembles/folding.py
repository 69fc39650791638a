"""Weights of a traced network as they take part in the computation.

A network may compute a weight from its parameters: times a mask (``torch.nn.utils.prune``, masked layers),
divided by a norm, scaled. What pruning has removed, and what it may still remove, are entries of the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

# Operations that hand on their input: only where its entries lie, or their number type, changes.
_VIEWS = {"permute", "transpose", "t", "numpy_T", "view", "reshape", "unsqueeze", "squeeze", "flatten"}
_SAME = {"alias", "detach", "detach_", "lift_fresh_copy", "to", "_to_copy", "type_as"}
# Operations that say what must hold of a tensor, such as its number type when the network was traced.
_CHECKS = ("_assert", "_guards", "sym_constrain", "_check")
# Operations that multiply values by a weight, and those of them that take it as (inputs, outputs).
_TRANSPOSED = {"mm", "matmul", "addmm"}
_CONVOLUTIONS = {"convolution", *(f"conv{kind}{k}d" for kind in ("", "_transpose") for k in (1, 2, 3))}
_PRODUCTS = {"linear", "bilinear", "bmm", "einsum", "lstm", "gru", "rnn_relu", "rnn_tanh"}
_PRODUCTS |= _TRANSPOSED | _CONVOLUTIONS


def fold(module: GraphModule) -> dict[str, Tensor]:
    """Make every weight of the network one parameter, in place; these by name, as (outputs, inputs, ...).

    A weight is what a linear layer, matrix product or convolution multiplies its input by, if it comes from a
    parameter. One that is computed from parameters becomes a parameter itself, named like the first of them
    if nothing else needs that. Checks of number types go, and so do what cuts gradients and what converts to
    float32, float64 or the input's type: the network computes in the precision that it is given.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not node.users and _name(node).startswith(_CHECKS):
            graph.erase_node(node)
    constants = _Constants(module)
    inputs = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    wide = {torch.float32, torch.float64, *(x.dtype for x in inputs if isinstance(x, Tensor))}
    weights: dict[Node, Tensor] = {}
    sources: dict[Node, str] = {}  # of those that were computed
    for node in list(graph.nodes):
        name = _name(node)
        if node.op != "call_function" or constants.has(node):
            continue
        if name in _SAME and _exact(node, wide):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
            continue
        for argument in [n for n in node.all_input_nodes if constants.sources.get(n)]:
            if name not in _PRODUCTS or (name == "addmm" and argument is node.args[0]):
                continue
            value, root = constants.value(argument).detach(), argument
            while _name(root) in _VIEWS | _SAME:
                root = root.all_input_nodes[0]
            if value.dim() < 2 or constants.value(root).dim() < 2:
                continue
            if root.op != "get_attr":
                module.register_parameter(f"folded_{len(sources)}", nn.Parameter(value.clone()))
                with graph.inserting_before(argument):
                    root = graph.get_attr(f"folded_{len(sources)}")
                sources[root] = constants.sources[argument][0]
                argument.replace_all_uses_with(root)
            weights.setdefault(root, value.T if name in _TRANSPOSED else value)
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


class _Constants:
    """What a network computes from its parameters and buffers alone, evaluated when it is asked for.

    ``sources`` are the names of the parameters from which each such node is computed.
    """

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._values: dict[Node, Tensor] = {}
        self.sources: dict[Node, list[str]] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.sources[node] = [str(node.target)] if node.target in parameters else []
            elif node.op == "call_function" and self._determined(node):
                sources = [name for before in node.all_input_nodes for name in self.sources[before]]
                self.sources[node] = list(dict.fromkeys(sources))

    def _determined(self, node: Node) -> bool:
        """Whether the operation gives the same new value, computed from constants, whenever it is called."""
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        known = all(before in self.sources for before in node.all_input_nodes)
        return known and bool(node.all_input_nodes) and not drawn and not _name(node).endswith("_")

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


def _exact(node: Node, wide: set[torch.dtype]) -> bool:
    """Whether a value is a floating-point number before the node, and of one of these types after it."""
    before, after = (n.meta.get("val") for n in (node.all_input_nodes[0], node))
    floating = isinstance(before, Tensor) and before.is_floating_point()
    return floating and isinstance(after, Tensor) and after.dtype in wide


def _name(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]
