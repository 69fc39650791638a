"""What a network's graph can do inside an l_p ball: every node by intervals and backward linear relaxation.

The same engine bounds values, on the graph of the network, and gradients, on its adjoint: there an activation
multiplies by a derivative that may be 0 or 1, relaxed by the lines that join the ends of max(z, 0) and of
min(z, 0). Rounding is accounted for as in :mod:`theory.graph.relaxation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from theory.graph.network import Activation, Combine, Graph, Source, combined
from theory.graph.relaxation import (
    EXTRA,
    Ball,
    Interval,
    Lines,
    eps_of,
    gate_interval,
    gate_lines,
    interval_step,
    relu_interval,
    relu_lines,
    sound,
    step_size,
    terms_of,
    tiny_of,
)

ROW_ENTRIES = 2**25  # entries of the largest tensor of coefficients: 256 MiB in float64


def norms(sizes: Tensor, *, q: float) -> Tensor:
    """l_q norm of non-negative entries over all axes but the first two, an identity to rounding."""
    flat = sizes.flatten(2)
    if q == 1:
        return flat.sum(2)
    largest = flat.amax(2, keepdim=True)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return ((flat / unit).square().sum(2, keepdim=True).sqrt() * unit)[..., 0]


def lower_bounds(
    graph: Graph,
    node: int,
    rows: Tensor,
    lines: dict[int, Lines],
    sizes: list[Tensor],
    ball: Ball,
    *,
    offset: Tensor | None = None,
) -> Tensor:
    """Lower bounds over the ball of rows . value(node) + offset, a bound by backward linear relaxation: (m,
    r).

    ``rows`` is (1 or m, r, *shape) and may be the same for all examples. Every activation below ``node`` is
    replaced, backwards, by the line below or above it that the sign of its coefficient asks for. ``sizes``
    bounds the absolute value of every node: it turns errors of coefficients into errors of the result.

    Reference: Zhang et al. 2018, Theorem 3.2 (CROWN); Xu et al. 2020 for graphs.
    """
    eps, tiny = eps_of(graph), tiny_of(graph)
    total = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device) if offset is None else offset
    slack = eps * total.abs()
    arriving = {node: rows}
    for i in range(node, 0, -1):
        if i not in arriving:
            continue
        coefficients, here = arriving.pop(i), graph.nodes[i]
        size = step_size(graph, here, [sizes[j] for j in here.inputs])
        signed = [] if here.bias is None else [here.bias.expand(here.shape)[None]]
        intercepts: list[tuple[float, Tensor]] = []
        match here.operation:
            case Activation():
                line = lines[i]
                intercepts = [(s, t) for s, t in ((1.0, line.low), (-1.0, line.high)) if t is not None]
                signed += [intercept for _, intercept in intercepts]
                below = line.below[:, None] if line.below.dim() < rows.dim() else line.below
                passed = [
                    (here.inputs[0], torch.where(coefficients > 0, below, line.above[:, None]) * coefficients)
                ]
                size = size + sizes[i]
            case Combine(signs):
                passed = [
                    (j, coefficients if s == 1 else s * coefficients)
                    for j, s in zip(here.inputs, signs, strict=True)
                ]
            case Source():
                raise AssertionError("the source is node 0")
            case operation:
                back = operation.transpose(coefficients.flatten(0, 1))
                passed = [(here.inputs[0], back.unflatten(0, coefficients.shape[:2]))]
        count = coefficients[0, 0].numel()
        for value in signed:
            size = size + count * value.abs()
        # A positive coefficient meets the lower intercept, a negative one the upper: (c +- |c|) / 2 each.
        absolute = _dots(coefficients.abs(), [size, torch.ones_like(size[:1]), *(t for _, t in intercepts)])
        plain = _dots(coefficients, signed) if signed else []
        if here.bias is not None:
            total = total + plain.pop(0)
        for (sign, _), mixed, sized in zip(intercepts, plain, absolute[2:], strict=True):
            total = total + (mixed + sign * sized) / 2
        terms = terms_of(here)
        slack = slack + terms * (
            eps * absolute[0] + tiny * (absolute[1] + size.flatten(1).sum(1)[:, None] + 1)
        )
        slack = slack + 2 * eps * total.abs()
        for j, more in passed:
            arriving[j] = arriving[j] + more if j in arriving else more
    if 0 not in arriving:
        return total - slack * (1 + 64 * eps)
    coefficients = arriving[0]
    absolute = coefficients.abs()
    spread = norms(absolute, q=ball.q) * ball.radius[:, None]
    reach, total_size = _dots(absolute, [ball.centre.abs(), torch.ones_like(ball.centre[:1])])
    terms = coefficients[0, 0].numel() + EXTRA
    slack = slack + terms * (eps * (reach + spread + total.abs()) + tiny * (total_size + 1))
    bound = _dots(coefficients, [ball.centre])[0] + total - spread - slack * (1 + 64 * terms * eps)
    return torch.where(bound.isnan(), -torch.inf, bound)


def _dots(coefficients: Tensor, values: list[Tensor]) -> list[Tensor]:
    """Inner products of (1 or m, r, *shape) with several (1 or m, *shape), in one pass: (m, r) each."""
    left = coefficients.flatten(2)
    examples = max(len(value) for value in values)
    right = torch.stack([value.flatten(1).expand(examples, -1) for value in values], dim=2)
    if len(left) == 1:
        product = torch.einsum("rn,mnv->mrv", left[0], right)
    elif examples == 1:
        product = left @ right[0]
    else:
        product = torch.bmm(left, right)
    return list(product.unbind(2))


@dataclass(frozen=True)
class NodeBounds:
    """Intervals of every node of a graph over the balls, the lines around its activations, and sizes."""

    intervals: tuple[Interval, ...]
    lines: dict[int, Lines]

    @property
    def sizes(self) -> list[Tensor]:
        """The largest absolute value of every entry of every node."""
        return [interval.size for interval in self.intervals]

    def take(self, rows: Tensor) -> NodeBounds:
        """The intervals of some examples, without lines."""
        return NodeBounds(tuple(Interval(b.lower[rows], b.upper[rows]) for b in self.intervals), {})


Tighten = Callable[[Graph, int, Interval, NodeBounds, Ball], Interval]


def linear_row_norms(graph: Graph, *, q: float) -> dict[int, Tensor]:
    """||row||_q of every activation's input that is affine in the input, a bound: (*shape) each, by node.

    They depend on neither the balls nor their radii.
    """
    found = {}
    for i in graph.activations:
        (before,) = graph.nodes[i].inputs
        if graph.linear[before] and before not in found:
            found[before] = _row_norms(graph, before, q=q)
    return found


def _row_norms(graph: Graph, node: int, *, q: float) -> Tensor:
    shape = graph.nodes[node].shape
    count, eps = prod(shape), eps_of(graph)
    largest = max(prod(n.shape) for n in graph.nodes[: node + 1])
    exact, error = [], []
    for part in torch.arange(count, device=graph.device).split(max(1, ROW_ENTRIES // largest)):
        rows = torch.zeros(1, len(part), count, dtype=graph.dtype, device=graph.device)
        rows[0, torch.arange(len(part), device=graph.device), part] = 1.0
        rows = rows.unflatten(2, shape)
        back, size, terms = _pull_linear(graph, node, rows)
        exact.append(norms(back.abs(), q=q)[0])
        error.append(terms * eps * norms(size, q=q)[0])
    return (
        (torch.cat(exact) + torch.cat(error)) * (1 + 4 * eps * (prod(graph.nodes[0].shape) + EXTRA))
    ).reshape(shape)


def _pull_linear(graph: Graph, node: int, rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """rows through the affine part of a graph to the input; the same for absolute weights; roundings."""
    arriving, sizes, terms = {node: rows}, {node: rows.abs()}, EXTRA
    for i in range(node, 0, -1):
        if i not in arriving:
            continue
        here, value, size = graph.nodes[i], arriving.pop(i), sizes.pop(i)
        terms += terms_of(here)
        match here.operation:
            case Combine(signs):
                passed = [(j, s * value, size) for j, s in zip(here.inputs, signs, strict=True)]
            case Source() | Activation():
                raise AssertionError("not affine")
            case operation:
                shape = value.shape[:2]
                back = operation.transpose(value.flatten(0, 1)).unflatten(0, shape)
                wide = operation.magnitude().transpose(size.flatten(0, 1)).unflatten(0, shape)
                passed = [(here.inputs[0], back, wide)]
        for j, back, wide in passed:
            arriving[j] = arriving[j] + back if j in arriving else back
            sizes[j] = sizes[j] + wide if j in sizes else wide
    return arriving[0], sizes[0], terms


def node_bounds(
    graph: Graph,
    ball: Ball,
    *,
    units: dict[int, Interval] | None = None,
    row_norms: dict[int, Tensor] | None = None,
    known: NodeBounds | None = None,
    tighten: Tighten | None = None,
) -> NodeBounds:
    """Bounds of every node over the balls, a bound: intervals, tightened by linear relaxation where it
    matters.

    ``units`` holds, for a graph of gradients, the intervals of the inputs of the ReLUs whose derivatives it
    uses. ``row_norms`` are those of :func:`linear_row_norms`. ``known`` are bounds over larger balls with the
    same centres. The intervals of inputs of activations that are not affine go through ``tighten``, by
    default :func:`open_signs`.
    """
    tighten = open_signs if tighten is None else tighten
    row_norms = linear_row_norms(graph, q=ball.q) if row_norms is None else row_norms
    eps, tiny = eps_of(graph), tiny_of(graph)
    feeding = {graph.nodes[i].inputs[0] for i in graph.activations}
    intervals: list[Interval] = []
    lines: dict[int, Lines] = {}
    middles = _affine_values(graph, ball.centre, set(row_norms))
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
            case _:
                interval = interval_step(graph, node, [intervals[j] for j in node.inputs])
                if known is not None:
                    interval = interval.meet(known.intervals[i])
                if i in row_norms:
                    middle, size, terms = middles[i]
                    reach = ball.radius.reshape(-1, *(1,) * len(node.shape)) * row_norms[i]
                    slack = terms * (eps * size + tiny) + 4 * eps * (reach + size)
                    interval = interval.meet(sound(Interval(middle - reach - slack, middle + reach + slack)))
                elif i in feeding:
                    interval = tighten(graph, i, interval, NodeBounds(tuple(intervals), lines), ball)
        intervals.append(interval)
    return NodeBounds(tuple(intervals), lines)


def _affine_values(graph: Graph, x: Tensor, wanted: set[int]) -> dict[int, tuple[Tensor, Tensor, int]]:
    """Values at ``x``, sizes and roundings of the affine nodes that ``wanted`` needs."""
    found: dict[int, tuple[Tensor, Tensor, int]] = {}
    last = max(wanted, default=-1)
    for i, node in enumerate(graph.nodes[: last + 1]):
        if not graph.linear[i]:
            continue
        if isinstance(node.operation, Source):
            found[i] = (x, x.abs(), EXTRA)
            continue
        parts = [found[j] for j in node.inputs]
        match node.operation:
            case Combine(signs):
                value = combined([v for v, _, _ in parts], signs)
            case operation:
                assert not isinstance(operation, Source | Activation)
                value = operation.apply(parts[0][0])
        value = value if node.bias is None else value + node.bias
        size = step_size(graph, node, [s for _, s, _ in parts])
        found[i] = (value, size, max(t for _, _, t in parts) + terms_of(node))
    return found


def open_signs(graph: Graph, node: int, interval: Interval, before: NodeBounds, ball: Ball) -> Interval:
    """The interval of a node, a bound, met with linear bounds of the entries whose sign is open."""
    open_ = (interval.lower < 0) & (interval.upper > 0)
    flat = open_.flatten(1)
    most = int(flat.sum(1).max())
    if most == 0:
        return interval
    lower, upper = interval.lower.flatten(1).clone(), interval.upper.flatten(1).clone()
    sizes = before.sizes
    largest = max(prod(n.shape) for n in graph.nodes[: node + 1])
    chunk = max(1, ROW_ENTRIES // (2 * largest * len(flat)))
    order = flat.to(torch.uint8).topk(most, dim=1).indices if most < flat.shape[1] else None
    places = (
        torch.arange(flat.shape[1], device=flat.device)[None].expand(len(flat), -1)
        if order is None
        else order
    )
    for part in places.split(chunk, dim=1):
        shared = order is None
        rows = torch.zeros(
            1 if shared else len(flat), part.shape[1], flat.shape[1], dtype=graph.dtype, device=graph.device
        )
        rows.scatter_(2, part[: len(rows), :, None], 1.0)
        rows = torch.cat([rows, -rows], dim=1).unflatten(2, graph.nodes[node].shape)
        found = lower_bounds(graph, node, rows, before.lines, sizes, ball)
        below, minus_above = found.split(part.shape[1], dim=1)
        lower.scatter_(1, part, torch.fmax(lower.gather(1, part), below))
        upper.scatter_(1, part, torch.fmin(upper.gather(1, part), -minus_above))
    return Interval(lower.reshape(open_.shape), upper.reshape(open_.shape))
