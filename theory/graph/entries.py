"""Every entry of a gradient over a ball, from below and from above, by one pass back to the scores.

A derivative d that may be 0 or 1 leaves d z = z/2 +- |z|/2. The middle z/2 is the same for all classes. The
spread |z|/2 lies below half the largest |z|, so that one pass serves all classes (parallel lines), or below
its chord on the interval of z, which is tighter and needs a spread for every class: d z then lies between the
line that joins the ends of min(z, 0) and that of max(z, 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from theory.graph.affine import times
from theory.graph.backward import NodeBounds
from theory.graph.network import Activation, Combine, Dense, Graph, Linear, Node, Shape, Source, Transposed
from theory.graph.relaxation import EXTRA, Interval, chord, eps_of, step_size, terms_of, tiny_of

ROW_ENTRIES = 2**20  # entries of the largest tensor of coefficients


@dataclass(frozen=True)
class _Gate:
    """d z lies in middle z +- (slope z + rest): (1, 1, n), and (k, 1, n) or None for 0.

    ``ends`` (k, n, 2) is what a coefficient of size 1 adds to its own side, with ``rest``, and to the other.
    Of ``entries`` alone, None for all: where d is known to be 0, nothing counts.
    """

    middle: Tensor
    slope: Tensor | None
    ends: Tensor
    entries: Tensor | None


@dataclass(frozen=True)
class _Costs:
    """What coefficients meet on their way, by node: gates, values of affine nodes (k, n, 1), what rounding
    adds for one of size 1 (k, n, 1) unless a gate counts it, what underflow adds to a row (k, 1)."""

    gates: dict[int, _Gate]
    values: dict[int, Tensor]
    rounding: dict[int, Tensor]
    lost: dict[int, Tensor]


@dataclass(frozen=True)
class _Rows:
    """Coefficients middle +- spread of functionals above and below, (1 or k, r, *shape) each.

    Entries of ``spread`` have any sign; None stands for 0. Of ``entries`` of the node alone, (1 or k, r, n),
    where the others are 0; None for all.
    """

    middle: Tensor
    spread: Tensor | None = None
    entries: Tensor | None = None

    def through(self, step: Callable[[Tensor], Tensor]) -> _Rows:
        """Both, after a linear step that gives all entries of another node."""
        return _Rows(step(self.middle), None if self.spread is None else step(self.spread))

    def shaped(self, shape: Shape) -> _Rows:
        """All entries in the shape of their node; some stay in a row."""
        return (
            self
            if self.entries is not None
            else self.through(lambda rows: rows.reshape(*rows.shape[:2], *shape))
        )

    def everywhere(self, shape: Shape) -> _Rows:
        """With the entries that are 0."""
        entries = self.entries
        if entries is None:
            return self

        def filled(rows: Tensor) -> Tensor:
            full = rows.new_zeros(*rows.shape[:2], prod(shape))
            full[..., entries] = rows
            return full.unflatten(2, shape)

        return self.through(filled)

    def plus(self, other: _Rows, shape: Shape) -> _Rows:
        """The sum of the functionals."""
        here, there = self.everywhere(shape), other.everywhere(shape)
        spreads = [spread for spread in (here.spread, there.spread) if spread is not None]
        return _Rows(here.middle + there.middle, sum(spreads[1:], spreads[0]) if spreads else None)

    def of(self, values: Tensor) -> Tensor:
        """What belongs to the entries held, of (k, n, v)."""
        return values if self.entries is None else values[:, self.entries]


def entry_bounds(
    reverse: Graph, node: int, found: NodeBounds, units: dict[int, Interval], *, chords: bool
) -> Interval:
    """Every entry of a node of the adjoint at m examples times k cotangents, a bound: (m k, *shape).

    ``found`` are bounds of the nodes before, k for each example; ``units`` the intervals of the inputs of the
    ReLUs, one for each example. The spread of a product lies below its chord if ``chords``, else below a
    constant. One example at a time: what its inactive units would meet is left out.

    Source: this project for the split into middle and spread; the lines are those of Shi et al. 2022.
    """
    rows = torch.arange(len(found.intervals[0].lower), device=reverse.device)
    examples = max((len(unit.lower) for unit in units.values()), default=1)
    costs = [
        _costs(reverse, node, found.take(k), {j: z.take(m) for j, z in units.items()}, chords=chords)
        for m, k in zip(rows[:examples, None], rows.chunk(examples), strict=True)
    ]
    shape, row = reverse.nodes[node].shape, max(prod(here.shape) for here in reverse.nodes[: max(1, node)])
    sides: list[list[tuple[Tensor, Tensor]]] = [[] for _ in costs]
    for part in torch.arange(prod(shape), device=reverse.device).split(
        max(1, ROW_ENTRIES * examples // (row * len(rows)))
    ):
        start = _start(reverse, node, part)
        for cost, side in zip(costs, sides, strict=True):
            side.append(_followed(reverse, node, part, start, cost))
    below, above = (torch.cat([torch.cat([s[i] for s in side], dim=1) for side in sides]) for i in (0, 1))
    return Interval(below.unflatten(1, shape), above.unflatten(1, shape))


def is_exact(reverse: Graph, node: int) -> bool:
    """Whether the interval of a node of an adjoint is the range of its entries, an identity to rounding.

    It is if one linear operator makes it of certain numbers times unknown derivatives.
    """
    here = reverse.nodes[node]
    if isinstance(here.operation, Source | Combine | Activation):
        return False
    before = reverse.nodes[here.inputs[0]]
    return isinstance(before.operation, Activation) and reverse.linear[before.inputs[0]]


def _costs(
    reverse: Graph, node: int, found: NodeBounds, units: dict[int, Interval], *, chords: bool
) -> _Costs:
    """All that the bounds of a node's entries need of the nodes before it, at one example."""
    eps, tiny = eps_of(reverse), tiny_of(reverse)
    sizes, nothing = found.sizes, torch.zeros(len(found.intervals[0].lower), 1).to(found.intervals[0].lower)
    gates, values, rounding, lost = {}, {}, {}, {}
    for i, here in enumerate(reverse.nodes[: node + 1]):
        terms, count = terms_of(reverse, here), prod(here.shape) + EXTRA
        arriving = sum((sizes[j].flatten(1).sum(1, keepdim=True) for j in here.inputs), start=nothing)
        lost[i] = (terms * arriving + 4 * count) * tiny
        if reverse.linear[i]:
            value, error = found.centres[i]
            values[i] = value.flatten(1)[..., None]
            rounding[i] = (error + count * (eps * value.abs() + tiny)).flatten(1)[..., None]
        elif isinstance(here.operation, Activation):
            assert here.operation.unit is not None
            (below,), z = here.inputs, found.intervals[here.inputs[0]]
            gates[i] = _gate(
                z,
                units[here.operation.unit],
                sloped=chords and not reverse.linear[below],
                own=terms * eps * z.size + tiny,
                passed=rounding.get(below),
            )
        else:
            size = step_size(reverse, here, [sizes[j] for j in here.inputs])
            rounding[i] = (terms * (eps * size + tiny)).flatten(1)[..., None]
    others = (n for n in reverse.nodes[: node + 1] if not isinstance(n.operation, Activation))
    uncounted = {node, *(j for other in others for j in other.inputs)}
    return _Costs(gates, values, {j: rounding[j] for j in uncounted if j in rounding}, lost)


def _gate(z: Interval, unit: Interval, *, sloped: bool, own: Tensor, passed: Tensor | None) -> _Gate:
    """z times the derivative of a ReLU with its input in ``unit``, a bound; known where its sign is.

    ``own`` is what its own rounding adds, ``passed`` that of the node below, which is counted here, where
    coefficients are fewer.
    """
    off, on = (unit.upper <= 0).flatten(1), (unit.lower >= 0).flatten(1)
    middle = torch.where(off, 0.0, torch.where(on, 1.0, 0.5)).to(z.lower.dtype)
    half = torch.where(middle == 0.5, middle, 0.0)
    slope, height = chord(z) if sloped else (None, z.size)
    slack = own.flatten(1)[..., None]
    if passed is not None:
        slack = slack + passed
    ends = torch.cat([(half * height.flatten(1))[..., None] + slack, slack], dim=2)
    slope = None if slope is None else half * slope.flatten(1)
    entries = (~off).all(0).nonzero()[:, 0] if len(off) == 1 else None
    if entries is None or 4 * len(entries) > 3 * off.shape[1]:
        ends = torch.where(off[..., None], 0.0, ends)
        return _Gate(middle[:, None], None if slope is None else slope[:, None], ends, None)
    slope = None if slope is None else slope[:, None, entries]
    return _Gate(middle[:, None, entries], slope, ends[:, entries], entries)


def _start(reverse: Graph, node: int, part: Tensor) -> dict[int, _Rows]:
    """Some entries of a node as functionals of what it is made of, which are the same at all examples."""
    here = reverse.nodes[node]
    rows = torch.zeros(1, len(part), prod(here.shape), dtype=reverse.dtype, device=reverse.device)
    rows = _Rows(rows.scatter_(2, part[None, :, None], 1.0).unflatten(2, here.shape))
    if reverse.linear[node] or isinstance(here.operation, Activation):
        return {node: rows}
    return dict(_back(here, rows))


def _followed(
    reverse: Graph, node: int, part: Tensor, start: dict[int, _Rows], costs: _Costs
) -> tuple[Tensor, Tensor]:
    """Bounds of some entries of a node from below and above, (k, r) each."""
    eps = eps_of(reverse)
    middle = spread = below = above = torch.zeros_like(costs.lost[node].expand(-1, len(part)))
    if node not in start:
        below = above = costs.lost[node] + costs.rounding[node][:, part, 0]
    arriving = dict(start)
    for i in range(max(arriving), -1, -1):
        if i not in arriving:
            continue
        here, rows = reverse.nodes[i], arriving.pop(i)
        slack, passed = costs.lost[i], []
        if i in costs.rounding:
            sizes = rows.middle.abs() if rows.spread is None else rows.middle.abs() + rows.spread.abs()
            slack = slack + _against(sizes, rows.of(costs.rounding[i]))[..., 0]
        if reverse.linear[i]:
            values = rows.of(costs.values[i])
            middle = middle + _against(rows.middle, values)[..., 0]
            if rows.spread is not None:
                spread = spread + _against(rows.spread, values)[..., 0]
            slack = slack + 2 * eps * (middle.abs() + spread.abs())
        elif isinstance(here.operation, Activation):
            rows, down, up = _gated(rows.everywhere(here.shape), costs.gates[i])
            below, above, passed = below + down, above + up, [(here.inputs[0], rows.shaped(here.shape))]
        else:
            passed = _back(here, rows)
        below, above = below + slack, above + slack
        for j, more in passed:
            arriving[j] = arriving[j].plus(more, reverse.nodes[j].shape) if j in arriving else more
    terms = max(prod(here.shape) for here in reverse.nodes) + 4 * len(reverse.nodes) + EXTRA
    grow, slack = 1 + 2 * terms * eps, 4 * eps * (middle.abs() + spread.abs())
    return middle - spread - below * grow - slack, middle + spread + above * grow + slack


def _back(here: Node, rows: _Rows) -> list[tuple[int, _Rows]]:
    """Rows of a sum or an operator as rows of its inputs."""
    match here.operation:
        case Transposed(Dense(weight)) if rows.entries is not None:
            return [(here.inputs[0], rows.through(partial(torch.matmul, other=weight[:, rows.entries].mT)))]
        case Transposed(Dense(weight)):
            return [(here.inputs[0], rows.through(partial(times, weight=weight.mT)))]
        case Combine(signs):
            rows = rows.everywhere(here.shape)
            return [
                (j, rows.through(partial(torch.mul, other=s)))
                for j, s in zip(here.inputs, signs, strict=True)
            ]
        case operation:
            assert not isinstance(operation, Source | Activation)
            rows = rows.everywhere(here.shape)
            return [(here.inputs[0], rows.through(partial(_transposed, operation)))]


def _gated(rows: _Rows, gate: _Gate) -> tuple[_Rows, Tensor, Tensor]:
    """Rows of d z as rows of z, and what they leave below and above, (k, r) each."""
    rows = rows.through(partial(torch.flatten, start_dim=2))
    if gate.entries is not None:
        rows = rows.through(partial(torch.index_select, dim=2, index=gate.entries))
    if rows.spread is None:
        size = rows.middle.abs()
        reach = _against(size, gate.ends[..., :1])[..., 0]
        spread = None if gate.slope is None else size * gate.slope
        return _Rows(rows.middle * gate.middle, spread, gate.entries), reach, reach
    down, up = (rows.middle - rows.spread).abs(), (rows.middle + rows.spread).abs()
    below, above = _against(down, gate.ends), _against(up, gate.ends)
    middle, spread = rows.middle * gate.middle, rows.spread * gate.middle
    if gate.slope is not None:
        half = gate.slope / 2
        middle, spread = middle + (up - down) * half, spread + (up + down) * half
    return (
        _Rows(middle, spread, gate.entries),
        below[..., 0] + above[..., 1],
        above[..., 0] + below[..., 1],
    )


def _transposed(operation: Linear, rows: Tensor) -> Tensor:
    return operation.transpose(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])


def _against(rows: Tensor, values: Tensor) -> Tensor:
    """Inner products of (1 or k, r, *shape) with (k, n, v): (k, r, v)."""
    flat, (k, _, v) = rows.flatten(2), values.shape
    if len(flat) < k:  # one product for all cotangents
        return (flat[0] @ values.transpose(0, 1).flatten(1)).unflatten(1, (k, v)).transpose(0, 1)
    return flat @ values
