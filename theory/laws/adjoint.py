"""Laws of the graph of gradients, for every choice of the derivatives that are not known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from theory.graph.network import Activation, Combine, Graph, Source, adjoint, combined
from theory.graph.relaxation import Interval
from theory.laws.graph import ROUNDING

PATTERNS = 32  # of 0 and 1 for the derivatives that are not known


def values_of_adjoint(reverse: Graph, cotangents: Tensor, derivatives: dict[int, Tensor]) -> list[Tensor]:
    """Every node's value for cotangents (n, c) and the derivatives of the ReLUs: (n, *shape) each."""
    found: list[Tensor] = []
    for node in reverse.nodes:
        match node.operation:
            case Source():
                found.append(cotangents)
            case Activation(unit):
                assert unit is not None
                found.append(found[node.inputs[0]] * derivatives[unit])
            case Combine(signs):
                found.append(combined([found[j] for j in node.inputs], signs))
            case operation:
                found.append(operation.apply(found[node.inputs[0]]))
    return found


def law_contains_entries(
    bounds: Callable, graph: Graph, units: dict[int, Interval], cotangents: Tensor
) -> None:
    """lower <= value <= upper at every node of the adjoint, whatever derivatives the intervals leave open.

    ``units`` holds intervals (m, *shape) of the inputs of the ReLUs, ``cotangents`` is (m, k, c);
    ``bounds(graph, units, cotangents)`` gives both sides per node, (m k, *shape).
    """
    generator = torch.Generator().manual_seed(0)
    m, k, classes = cotangents.shape
    derivatives = {}
    for i, z in units.items():
        lower, upper = (side.repeat_interleave(k, 0).double() for side in (z.lower, z.upper))
        bits = torch.randint(2, (PATTERNS, *lower.shape), generator=generator).double()
        known = torch.where(upper <= 0, 0.0, 1.0).expand_as(bits)
        derivatives[i] = torch.where((lower < 0) & (upper > 0), bits, known).flatten(0, 1)
    rows = cotangents.double().reshape(1, m * k, classes).expand(PATTERNS, -1, -1).flatten(0, 1)
    sides = bounds(graph, units, cotangents)
    for value, (lower, upper) in zip(
        values_of_adjoint(adjoint(graph), rows, derivatives), sides, strict=True
    ):
        value = value.unflatten(0, (PATTERNS, m * k))
        assert lower.shape == upper.shape == value.shape[1:]
        assert not (lower.isnan() | upper.isnan()).any()
        slack = ROUNDING * value.abs().amax()
        assert ((value >= lower - slack) & (value <= upper + slack)).all()
