"""What a network's graph can do inside an l_p ball: every node by intervals and backward linear relaxation.

The same engine bounds values, on the graph of the network, and gradients, on its adjoint: there an activation
multiplies by a derivative that may be 0 or 1, relaxed by the lines that join the ends of max(z, 0) and of
min(z, 0). Rounding is accounted for as in :mod:`theory.graph.relaxation`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from theory.graph.affine import AffinePart, affine_part, affine_values
from theory.graph.backward import NodeBounds
from theory.graph.checks import check_number_type
from theory.graph.network import Activation, Dense, Graph, Source
from theory.graph.relaxation import (
    Ball,
    Interval,
    Lines,
    gate_interval,
    gate_lines,
    interval_step,
    relu_interval,
    relu_lines,
    sound,
)
from theory.graph.slopes import optimised_bounds
from theory.types import InvalidInput

ROW_ENTRIES = 2**19  # entries of the largest tensor of coefficients on a CPU, 4 MiB in float64: cached
ON_GPU = 64  # times as many elsewhere

Tighten = Callable[[Graph, int, Interval, NodeBounds, Ball, AffinePart], Interval]


def node_bounds(
    graph: Graph,
    ball: Ball,
    *,
    units: dict[int, Interval] | None = None,
    part: AffinePart | None = None,
    known: NodeBounds | None = None,
    tighten: Tighten | None = None,
) -> NodeBounds:
    """Bounds of every node over the balls, a bound: intervals, tightened by linear relaxation where it
    matters.

    ``units`` holds, for a graph of gradients, the intervals of the inputs of the ReLUs whose derivatives it
    uses. ``part`` is that of :func:`theory.graph.affine.affine_part`. ``known`` are bounds over larger balls
    with the same centres. The intervals of inputs of activations that are not affine go through ``tighten``,
    by default :func:`open_signs`.

    Raises: InvalidInput for a ball with another q than 1 and 2, a radius that is negative, not finite or of
      another length, or another shape or number type than the graph's.
    """
    _check_ball(graph, ball)
    tighten = open_signs if tighten is None else tighten
    part = affine_part(graph, q=ball.q, examples=len(ball.radius)) if part is None else part
    eps = torch.finfo(graph.dtype).eps
    feeding = {graph.nodes[i].inputs[0] for i in graph.activations}
    intervals: list[Interval] = []
    lines: dict[int, Lines] = {}
    steps: dict[int, Tensor] = {}
    centres = affine_values(graph, ball.centre)
    for i, node in enumerate(graph.nodes):
        match node.operation:
            case Source():
                side = ball.radius.reshape(-1, *(1,) * len(node.shape))
                slack = 2 * eps * (ball.centre.abs() + side)
                interval = Interval(ball.centre - side - slack, ball.centre + side + slack)
            case Activation(unit):
                z = intervals[node.inputs[0]]
                if unit is None:
                    interval, lines[i] = relu_interval(z), relu_lines(z)
                else:
                    assert units is not None
                    interval, lines[i] = gate_interval(z, units[unit]), gate_lines(z, units[unit])
            case _ if i in part.norms:
                middle, error = centres[i]
                reach = ball.radius.reshape(-1, *(1,) * len(node.shape)) * part.norms[i]
                slack = error + 4 * eps * (reach + middle.abs() + error)
                interval = sound(Interval(middle - reach - slack, middle + reach + slack))
            case _:
                interval, steps[i] = interval_step(graph, node, [intervals[j] for j in node.inputs])
                if known is not None:
                    interval = interval.meet(known.intervals[i])
                if i in feeding:
                    before = NodeBounds(tuple(intervals), lines, centres, steps)
                    interval = tighten(graph, i, interval, before, ball, part)
        intervals.append(interval)
    return NodeBounds(tuple(intervals), lines, centres, steps)


def _check_ball(graph: Graph, ball: Ball) -> None:
    """Raises: InvalidInput as :func:`node_bounds`."""
    check_number_type(graph.dtype, graph.device)
    if ball.q not in (1, 2):
        raise InvalidInput(f"ball.q is {ball.q}; give 1 for balls in l_inf, 2 for balls in l_2")
    expected = {"centre": (len(ball.centre), *graph.nodes[0].shape), "radius": (len(ball.centre),)}
    for name, shape in expected.items():
        part: Tensor = getattr(ball, name)
        if part.shape != shape or not len(part):
            raise InvalidInput(f"ball.{name} has shape {tuple(part.shape)}; expected {shape}, not empty")
        if part.dtype != graph.dtype:
            raise InvalidInput(f"ball.{name} has dtype {part.dtype}; convert it to the graph's {graph.dtype}")
    if not (ball.radius.isfinite() & (ball.radius >= 0)).all():
        raise InvalidInput(
            f"ball.radius has an entry that is negative, NaN or infinite in {graph.dtype}; "
            "a ball needs a finite radius >= 0"
        )


def untightened(
    graph: Graph, node: int, interval: Interval, before: NodeBounds, ball: Ball, part: AffinePart
) -> Interval:
    """The interval as it is, a bound: what ``tighten`` does where units are not relaxed backward."""
    del graph, node, before, ball, part
    return interval


def open_signs(
    graph: Graph,
    node: int,
    interval: Interval,
    before: NodeBounds,
    ball: Ball,
    part: AffinePart,
    *,
    steps: int = 0,
) -> Interval:
    """The interval of a node, a bound, met with linear bounds of the entries whose sign is open.

    ``steps`` as in :func:`theory.graph.slopes.optimised_bounds`.
    """
    open_ = ((interval.lower < 0) & (interval.upper > 0)).flatten(1)
    counts = open_.sum(1)
    most = int(counts.max())
    if most == 0:
        return interval
    lower, upper = interval.lower.flatten(1).clone(), interval.upper.flatten(1).clone()
    entries = ROW_ENTRIES * (1 if graph.device.type == "cpu" else ON_GPU)
    row = 2 * max(prod(n.shape) for i, n in enumerate(graph.nodes[: node + 1]) if i)  # twice: for both sides
    group = max(1, entries // (row * most))
    for examples in counts.argsort(descending=True).split(group):  # alike ones share a number of rows
        most = int(counts[examples].max())
        if most == 0:
            break
        here = before if len(examples) == len(counts) else before.take(examples)
        balls = ball if len(examples) == len(counts) else ball.take(examples)
        if here is before:
            examples = torch.arange(len(counts), device=counts.device)
        places = open_[examples].to(torch.uint8).topk(most, dim=1).indices
        for columns in places.split(max(1, entries // row), dim=1):
            at = examples[:, None], columns
            below, above = _entries(graph, node, columns, here, balls, part, steps=steps)
            # Places that only fill an example's row up stay as they are: bounds do not hang on the company.
            lower[at] = torch.where(open_[at], torch.fmax(lower[at], below), lower[at])
            upper[at] = torch.where(open_[at], torch.fmin(upper[at], above), upper[at])
    return Interval(lower.reshape(interval.lower.shape), upper.reshape(interval.lower.shape))


def _entries(
    graph: Graph,
    node: int,
    places: Tensor,
    before: NodeBounds,
    ball: Ball,
    part: AffinePart,
    *,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Bounds of entries of a node from below and above, (m, r) each, at ``places`` (m, r)."""
    here, offset, start = graph.nodes[node], None, node
    n = prod(here.shape)
    every = places.shape[1] == n
    columns = torch.arange(n, device=places.device)[None] if every else places
    if isinstance(here.operation, Dense):  # entries are its weight's rows, applied to what is before
        (start,) = here.inputs
        rows = here.operation.weight.index_select(0, columns.flatten()).unflatten(0, columns.shape)
        if here.bias is not None:
            bias = here.bias.expand(here.shape)[columns]
            offset = torch.cat([bias, -bias], dim=1)
    else:
        rows = torch.zeros(*columns.shape, n, dtype=graph.dtype, device=graph.device)
        rows = rows.scatter_(2, columns[..., None], 1.0)
    rows = torch.cat([rows, -rows], dim=1).unflatten(2, graph.nodes[start].shape)
    found = optimised_bounds(graph, start, rows, before, ball, part, steps=steps, offset=offset)
    below, minus_above = found.at(ball.radius).split(places.shape[1], dim=1)
    if every:
        below, minus_above = below.gather(1, places), minus_above.gather(1, places)
    return below, -minus_above
