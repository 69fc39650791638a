"""What pruning left useless in the dense layers of a graph is left out before its bounds are made."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from theory.graph.network import Activation, Dense, Graph, Node, Source


def compacted(graph: Graph, x: Float[Tensor, "m *shape"]) -> tuple[Graph, Float[Tensor, "m *some"]]:
    """The graph without its dead parts, and the features of ``x`` that it looks at, an identity.

    Between dense layers, a unit goes that is 0 everywhere (no weight comes in, its bias is not positive) or
    that no weight leaves; so does a feature that no weight of a first dense layer leaves. One of each stays.

    Raises: InvalidInput as :meth:`Graph.check_inputs`.
    """
    graph.check_inputs(x)
    x = x.detach()  # a bound is a number, however its inputs were made
    nodes = list(graph.nodes)
    readers = {j: i for i, node in enumerate(nodes) for j in node.inputs}
    hidden = [
        (node.inputs[0], i, readers[i])
        for i, node in enumerate(nodes)
        if isinstance(node.operation, Activation)
        and graph.uses[i] == graph.uses[node.inputs[0]] == 1
        and isinstance(nodes[node.inputs[0]].operation, Dense)
        and isinstance(nodes[readers[i]].operation, Dense)
    ]
    for into, unit, out in hidden:  # from the front: what meets nothing but dead units is dead
        here = nodes[into]
        lives = _used(here, 1)
        _keep(nodes, into, unit, out, lives if here.bias is None else lives | (here.bias > 0).flatten())
    for into, unit, out in reversed(hidden):  # from behind: what dead units alone look at is dead
        _keep(nodes, into, unit, out, _used(nodes[out], 0))
    first = nodes[readers[0]]
    if not isinstance(first.operation, Dense) or graph.uses[0] != 1:
        return replace(graph, nodes=tuple(nodes)), x
    lives = _used(first, 0)
    if lives.all():
        return replace(graph, nodes=tuple(nodes)), x
    features = _some(lives)
    nodes[readers[0]] = _with_weight(first, first.operation.weight.index_select(1, features))
    nodes[0] = Node(Source(), (), (len(features),))
    return replace(graph, nodes=tuple(nodes)), x[:, features.to(x.device)]


def _keep(nodes: list[Node], into: int, unit: int, out: int, lives: Tensor) -> None:
    """Leave units of a hidden layer out of the nodes before it, of it, and behind it."""
    if lives.all():
        return
    kept = _some(lives)
    before, shape = nodes[into], (len(kept),)
    bias = None if before.bias is None else before.bias.expand(before.shape)[kept]
    nodes[into] = replace(_with_weight(before, _weight(before)[kept]), shape=shape, bias=bias)
    nodes[unit] = replace(nodes[unit], shape=shape)
    nodes[out] = _with_weight(nodes[out], _weight(nodes[out])[:, kept])


def _weight(node: Node) -> Tensor:
    assert isinstance(node.operation, Dense)
    return node.operation.weight


def _with_weight(node: Node, weight: Tensor) -> Node:
    assert isinstance(node.operation, Dense)
    return replace(node, operation=replace(node.operation, weight=weight))


def _used(node: Node, axis: int) -> Tensor:
    """Whether any weight along an axis is not 0; a sum is many times faster than :meth:`Tensor.any`."""
    assert isinstance(node.operation, Dense)
    return node.operation.magnitude().weight.sum(axis) != 0


def _some(lives: Tensor) -> Tensor:
    """The places that are True; the first one if none is."""
    places = lives.nonzero()[:, 0]
    return places if len(places) else places.new_zeros(1)
