"""Every entry of a gradient over a ball, from below and from above, by one pass back to the scores.

A derivative d that may be 0 or 1 leaves d z = z/2 +- |z|/2. The middle z/2 is the same for all classes. The
spread |z|/2 lies below half the largest |z|, so that one pass serves all classes (parallel lines), or below
its chord on the interval of z, which is tighter and needs a spread for every class: d z then lies between the
line that joins the ends of min(z, 0) and that of max(z, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from theory.graph.backward import NodeBounds
from theory.graph.functionals import Functionals, Scaled
from theory.graph.network import Activation, Combine, Dense, Graph, Linear, Node, Shape, Source, Transposed
from theory.graph.relaxation import EXTRA, Interval, chord, eps_of, terms_of, tiny_of

COLUMN_ENTRIES = 2**20  # entries of the largest tensor of coefficients


@dataclass(frozen=True)
class _Gate:
    """d z lies in middle z +- (slope z + rest): (n, 1), and (k, n, 1) or None for 0.

    ``ends`` (k, n, 2) is what a coefficient of size 1 adds to its own side, with ``rest``, and to the other.
    Of ``entries`` alone, None for all: where d is known to be 0, nothing counts. Of m examples at once with
    another axis in front, of all entries, and then ends do not know it yet.
    """

    middle: Tensor
    slope: Tensor | None
    ends: Tensor
    entries: Tensor | None = None

    def of(self, example: int) -> _Gate:
        """That of one example, without the entries that are 0 if they are many."""
        middle, ends = self.middle[example], self.ends[example]
        slope = None if self.slope is None else self.slope[example]
        entries = middle[:, 0].nonzero()[:, 0]
        if 4 * len(entries) > 3 * len(middle):
            off = (middle[:, 0] == 0).nonzero()[:, 0]
            return _Gate(middle, slope, ends.index_fill(1, off, 0.0))
        slope = None if slope is None else slope.index_select(1, entries)
        return _Gate(middle.index_select(0, entries), slope, ends.index_select(1, entries), entries)


@dataclass(frozen=True)
class _Costs:
    """What coefficients meet on their way, by node: gates, values of affine nodes (k, n, 1), what rounding
    adds for one of size 1 (k, n, 1) unless a gate counts it, what underflow adds to a functional (k, 1).

    Of m examples at once with another axis in front.
    """

    gates: dict[int, _Gate]
    values: dict[int, Tensor]
    rounding: dict[int, Tensor]
    lost: dict[int, Tensor]

    def of(self, example: int) -> _Costs:
        """Those of one example."""
        values, rounding, lost = (
            {i: every[example] for i, every in costs.items()}
            for costs in (self.values, self.rounding, self.lost)
        )
        return _Costs({i: gate.of(example) for i, gate in self.gates.items()}, values, rounding, lost)


def entry_bounds(
    reverse: Graph, node: int, found: NodeBounds, units: dict[int, Interval], *, chords: bool
) -> Interval:
    """Every entry of a node of the adjoint at m examples times k cotangents, a bound: (m k, *shape).

    ``found`` are bounds of the nodes before, k for each example; ``units`` the intervals of the inputs of the
    ReLUs, one for each example. The spread of a product lies below its chord if ``chords``, else below a
    constant. One example at a time: what its inactive units would meet is left out.

    Source: this project for the split into middle and spread; the lines are those of Shi et al. 2022.
    """
    every, shape = len(found.intervals[0].lower), reverse.nodes[node].shape
    examples = max((len(unit.lower) for unit in units.values()), default=1)
    together = _costs(reverse, node, found, units, examples=examples, chords=chords)
    costs = [together.of(example) for example in range(examples)]
    largest, count = max(prod(here.shape) for here in reverse.nodes[: max(1, node)]), prod(shape)
    most = max(1, COLUMN_ENTRIES // (largest * (every // examples if chords else 1)))
    width = -(-count // -(-count // most))  # parts of about one size
    lower, upper = found.intervals[0].lower.new_empty(2, examples, every // examples, count)
    for first in range(0, count, width):
        part = slice(first, min(first + width, count))
        start = _start(reverse, node, part)
        for example, cost in enumerate(costs):
            lower[example, :, part], upper[example, :, part] = _followed(reverse, node, part, start, cost)
    return Interval(lower.reshape(every, *shape), upper.reshape(every, *shape))


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
    reverse: Graph,
    node: int,
    found: NodeBounds,
    units: dict[int, Interval],
    *,
    examples: int,
    chords: bool,
) -> _Costs:
    """All that the bounds of a node's entries need of the nodes before it, at all examples."""
    eps, tiny = eps_of(reverse), tiny_of(reverse)
    sizes = [interval.size for interval in found.intervals[: node + 1]]
    sums = [size.flatten(1).sum(1) for size in sizes]
    gates, values, rounding, lost = {}, {}, {}, {}

    def columns(value: Tensor) -> Tensor:
        return value.reshape(examples, len(sums[0]) // examples, -1, 1)

    for i, here in enumerate(reverse.nodes[: node + 1]):
        terms, count = terms_of(reverse, here), prod(here.shape) + EXTRA
        arriving = sum((sums[j] for j in here.inputs), start=torch.zeros_like(sums[0]))
        lost[i] = columns((terms * arriving + 4 * count) * tiny)[..., 0]
        if reverse.linear[i]:
            value, error = found.centres[i]
            values[i] = columns(value)
            rounding[i] = columns(error + count * (eps * value.abs() + tiny))
        elif isinstance(here.operation, Activation):
            assert here.operation.unit is not None
            (below,) = here.inputs
            slope, height = None, sizes[below]
            if chords and not reverse.linear[below]:
                slope, height = chord(found.intervals[below])
            # Factors that underflow in the weights below, in a middle and a spread, move the inputs there.
            under = sum((sums[j] for j in reverse.nodes[below].inputs), start=torch.ones_like(sums[0]))
            slack = columns(terms * eps * sizes[below]) + columns(2 * tiny * under)
            if below in rounding:  # of the node below: counted here, where coefficients are fewer
                slack = slack + rounding[below]
            slope = None if slope is None else columns(slope)
            gates[i] = _gate(units[here.operation.unit], slope, columns(height), slack)
        else:
            rounding[i] = columns(terms * (eps * found.steps[i] + tiny))
    others = (n for n in reverse.nodes[: node + 1] if not isinstance(n.operation, Activation))
    uncounted = {node, *(j for other in others for j in other.inputs)}
    return _Costs(gates, values, {j: rounding[j] for j in uncounted if j in rounding}, lost)


def _gate(unit: Interval, slope: Tensor | None, height: Tensor, slack: Tensor) -> _Gate:
    """z times the derivative of a ReLU with its input in ``unit``, a bound; known where its sign is.

    |z| <= slope z + height, None for no slope; ``slack`` is what rounding adds, its own and what it counts
    for the node below. (m, k, n, 1) each.
    """
    off, on = (unit.upper <= 0).flatten(1)[..., None], (unit.lower >= 0).flatten(1)[..., None]
    half = torch.where(off | on, 0.0, 0.5).to(height.dtype)
    middle = torch.where(on & ~off, 1.0, half)
    ends = torch.cat([half[:, None] * height + slack, slack], dim=3)
    return _Gate(middle, None if slope is None else half[:, None] * slope, ends)


def _start(reverse: Graph, node: int, part: slice) -> dict[int, Functionals]:
    """Some entries of a node as functionals of what it is made of, which are the same at all examples."""
    here = reverse.nodes[node]
    match here.operation:
        case Transposed(Dense(weight)) if not reverse.linear[node]:
            return {here.inputs[0]: Functionals(Scaled(weight[None, :, part]))}
    eye = torch.eye(prod(here.shape), dtype=reverse.dtype, device=reverse.device)
    entries = Functionals(Scaled(eye[None, :, part]))
    if reverse.linear[node] or isinstance(here.operation, Activation):
        return {node: entries}
    start: dict[int, Functionals] = {}
    _add(start, _back(here, entries), reverse)
    return start


def _add(arriving: dict[int, Functionals], more: list[tuple[int, Functionals]], reverse: Graph) -> None:
    """Add functionals of nodes, which may occur twice, to those that are there."""
    for node, rows in more:
        there = arriving.get(node)
        arriving[node] = rows if there is None else there.plus(rows, prod(reverse.nodes[node].shape))


def _followed(
    reverse: Graph, node: int, part: slice, start: dict[int, Functionals], costs: _Costs
) -> tuple[Tensor, Tensor]:
    """Bounds of some entries of a node from below and above, (k, r) each."""
    eps = eps_of(reverse)
    # What is the same for all entries, or for both sides, is kept once until they differ.
    middle = spread = torch.zeros_like(costs.lost[node])
    reach = middle[None]  # below and above
    if node not in start:
        reach = reach + costs.lost[node] + costs.rounding[node][:, part, 0]
    arriving = dict(start)
    for i in range(max(arriving), -1, -1):
        if i not in arriving:
            continue
        here, rows = reverse.nodes[i], arriving.pop(i)
        slack, passed = costs.lost[i], []
        if i in costs.rounding or reverse.linear[i]:
            rows = rows.everywhere(prod(here.shape))
        if i in costs.rounding:
            sizes = rows.middle.whole().abs()
            sizes = sizes if rows.spread is None else sizes + rows.spread.whole().abs()
            slack = slack + Scaled(sizes).at(costs.rounding[i])[:, 0]
        if reverse.linear[i]:
            middle = middle + rows.middle.at(costs.values[i])[:, 0]
            if rows.spread is not None:
                spread = spread + rows.spread.at(costs.values[i])[:, 0]
            slack = slack + 2 * eps * (middle.abs() + spread.abs())
        elif isinstance(here.operation, Activation):
            gate = costs.gates[i]
            rows, left = _gated(rows.among(gate.entries, prod(here.shape)), gate)
            reach, passed = reach + left, [(here.inputs[0], rows)]
        else:
            passed = _back(here, rows, costs.gates)
        reach = reach + slack
        _add(arriving, passed, reverse)
    terms = max(prod(here.shape) for here in reverse.nodes) + 4 * len(reverse.nodes) + EXTRA
    reach = reach * (1 + 2 * terms * eps) + 4 * eps * (middle.abs() + spread.abs())
    return middle - spread - reach[0], middle + spread + reach[-1]


def _back(
    here: Node, rows: Functionals, gates: dict[int, _Gate] | None = None
) -> list[tuple[int, Functionals]]:
    """Functionals of a sum or an operator as those of its inputs: the entries that a gate there wants."""
    match here.operation:
        case Transposed(Dense(weight)):
            (before,) = here.inputs
            wanted = gates[before].entries if gates and before in gates else None
            weight = weight if wanted is None else weight.index_select(0, wanted)
            weight = weight if rows.entries is None else weight.index_select(1, rows.entries)
            return [(before, rows.through(lambda some: some.at(weight.mT[None]), wanted))]
        case Combine(signs):
            rows = rows.everywhere(prod(here.shape))
            return [
                (j, rows.through(lambda some, sign=s: sign * some.whole()))
                for j, s in zip(here.inputs, signs, strict=True)
            ]
        case operation:
            assert not isinstance(operation, Source | Activation)
            rows = rows.everywhere(prod(here.shape))
            return [(here.inputs[0], rows.through(partial(_transposed, operation, here.shape)))]


def _gated(rows: Functionals, gate: _Gate) -> tuple[Functionals, Tensor]:
    """Functionals of the gate's entries of d z as those of z, and what they leave: below and above,
    (2, k, r), or (1, k, r) if it is the same."""
    middle, known = rows.middle.whole(), gate.middle[None]
    if rows.spread is None:
        size = middle.abs()
        spread = None if gate.slope is None else Scaled(size, gate.slope)
        reach = Scaled(size).at(gate.ends[..., :1]).transpose(0, 1)
        return Functionals(Scaled(middle, known), spread, gate.entries), reach
    spread = rows.spread.whole()
    down, up = (middle - spread).abs_(), (middle + spread).abs_()  # in place: these are the largest tensors
    below, above = Scaled(down).at(gate.ends), Scaled(up).at(gate.ends)
    if gate.slope is None:
        passed = Functionals(Scaled(middle, known), Scaled(spread, known), gate.entries)
    else:
        half = gate.slope / 2
        middle, spread = middle * known + (up - down) * half, spread * known + (up + down) * half
        passed = Functionals(Scaled(middle), Scaled(spread), gate.entries)
    return passed, torch.stack([below[:, 0] + above[:, 1], above[:, 0] + below[:, 1]])


def _transposed(operation: Linear, shape: Shape, some: Scaled) -> Tensor:
    """The transpose of an operator on functionals of its value of a shape."""
    rows = some.whole().mT
    return operation.transpose(rows.reshape(-1, *shape)).reshape(*rows.shape[:2], -1).mT
