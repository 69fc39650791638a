"""Balls, intervals, and the relaxations of one node: intervals through operators, lines around activations.

Every bound includes its own floating-point rounding, in float64 as in float32: a sum of n products is
enlarged by n times the unit roundoff times the sum of their sizes (Higham 2002, section 3.1), once for the
value and once for the coefficients that meet it. What overflows becomes an infinite bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theory.graph.network import Activation, Combine, Graph, Node, Source, combined

EXTRA = 16  # roundings of an entry beyond those of its sums: slopes, intercepts, last additions


@dataclass(frozen=True)
class Ball:
    """One closed l_p ball per example: centre (m, *shape), radius (m,), and the dual exponent q."""

    centre: Tensor
    radius: Tensor
    q: float

    def within(self, radius: Tensor) -> Ball:
        """Balls of another radius."""
        return Ball(self.centre, radius, self.q)

    def take(self, rows: Tensor) -> Ball:
        """The balls of some examples."""
        return Ball(self.centre[rows], self.radius[rows], self.q)


@dataclass(frozen=True)
class Interval:
    """lower <= value <= upper, entry by entry: (m, *shape) each."""

    lower: Tensor
    upper: Tensor

    @property
    def size(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(-self.lower, self.upper)

    def take(self, rows: Tensor) -> Interval:
        """The intervals of some examples."""
        return Interval(self.lower[rows], self.upper[rows])

    def meet(self, other: Interval) -> Interval:
        """Both bounds at once; a NaN of one side leaves the other."""
        here, there = (
            sound(self),
            sound(other),
        )  # then minima and maxima, many times faster than fmin and fmax
        return Interval(torch.maximum(here.lower, there.lower), torch.minimum(here.upper, there.upper))


@dataclass(frozen=True)
class Lines:
    """below z + low <= f(z) <= above z + high on the interval of z, (m, *shape) each; None for 0.

    ``below`` may differ by row, (m, r, *shape).
    """

    below: Tensor
    low: Tensor | None
    above: Tensor
    high: Tensor | None

    def take(self, rows: Tensor) -> Lines:
        """The lines of some examples."""
        low = None if self.low is None else self.low[rows]
        high = None if self.high is None else self.high[rows]
        return Lines(self.below[rows], low, self.above[rows], high)


def eps_of(graph: Graph) -> float:
    """Twice the unit roundoff of the graph's numbers, an identity."""
    return torch.finfo(graph.dtype).eps


def tiny_of(graph: Graph) -> float:
    """The smallest normal number, a bound of what one operation loses to underflow."""
    return torch.finfo(graph.dtype).tiny


def relu_lines(z: Interval) -> Lines:
    """Lines around relu on the interval, a bound: the upper joins the ends, the lower has a slope in [0, 1].

    The lower slope is 0 or 1, whichever leaves the smaller area. Reference: Zhang et al. 2018 (CROWN),
    section 3.3.
    """
    eps = torch.finfo(z.lower.dtype).eps
    unstable = (z.lower < 0) & (z.upper > 0)
    width = torch.where(unstable, z.upper - z.lower, 1.0)
    chord = _slope(z.upper / width * (1 + 8 * eps))
    on = (z.lower >= 0).to(chord.dtype)
    above = torch.where(unstable, chord, on)
    chosen = (z.upper > -z.lower).to(chord.dtype)
    # -lower * chord may be inf; the bound is then -inf, as it should.
    return Lines(torch.where(unstable, chosen, on), None, above, torch.where(unstable, -z.lower * chord, 0.0))


def gate_lines(z: Interval, unit: Interval) -> Lines:
    """Lines around d z, d the derivative of a ReLU whose input lies in ``unit``, a bound.

    d is 0 where unit.upper <= 0 and else 1 where unit.lower >= 0, as ReLU is 0 or the identity on the whole
    ball; elsewhere it is 0 or 1, and min(z, 0) <= d z <= max(z, 0).
    """
    eps = torch.finfo(z.lower.dtype).eps
    off = unit.upper <= 0
    on = (unit.lower >= 0) & ~off
    free = ~(on | off)
    mixed = free & (z.lower < 0) & (z.upper > 0)
    width = torch.where(mixed, z.upper - z.lower, 1.0)
    rising = _slope(z.upper / width * (1 + 8 * eps))  # of the upper line: upper / width
    falling = _slope(-z.lower / width * (1 + 8 * eps))  # of the lower line: -lower / width
    fixed = on.to(z.lower.dtype)
    above = torch.where(mixed, rising, torch.where(free, (z.lower >= 0).to(rising.dtype), fixed))
    below = torch.where(mixed, falling, torch.where(free, (z.upper <= 0).to(rising.dtype), fixed))
    zero = torch.zeros_like(rising)
    return Lines(
        below,
        torch.where(mixed, -z.upper * falling, zero),
        above,
        torch.where(mixed, -z.lower * rising, zero),
    )


def chord(z: Interval) -> tuple[Tensor, Tensor]:
    """|z| <= slope z + height on the interval, a bound: the chord of |z|, or |z| itself; |slope| <= 1.

    At an infinite end the slope is 0 and the height infinite.
    """
    limits = torch.finfo(z.lower.dtype)
    up, down = z.upper.clamp(min=0.0), (-z.lower).clamp(min=0.0)
    slope = ((up - down) / (up + down)).nan_to_num(0.0)  # 1 or -1 where the sign is known, 0 at [0, 0]
    ends = torch.maximum(z.upper - slope * z.upper, -z.lower - slope * z.lower)
    height = (ends + 8 * limits.eps * z.size + limits.tiny) * up.sign() * down.sign()
    return slope, height.nan_to_num(torch.inf, torch.inf)


def _slope(ratio: Tensor) -> Tensor:
    """A slope raised by rounding, at most 1, where its line is a bound too; 1 for infinite ends."""
    return torch.where(ratio.isnan(), 1.0, ratio.clamp(max=1.0))


def relu_interval(z: Interval) -> Interval:
    """relu of an interval, an identity."""
    return Interval(z.lower.clamp(min=0.0), z.upper.clamp(min=0.0))


def gate_interval(z: Interval, unit: Interval) -> Interval:
    """d z for the derivative d of a ReLU whose input lies in ``unit``, an identity."""
    off = unit.upper <= 0
    on = unit.lower >= 0
    lower = torch.where(off, 0.0, torch.where(on, z.lower, z.lower.clamp(max=0.0)))
    return Interval(lower, torch.where(off, 0.0, torch.where(on, z.upper, z.upper.clamp(min=0.0))))


def step_size(graph: Graph, node: Node, inputs: list[Tensor]) -> Tensor:
    """The sum of the sizes of what each entry of a node adds up, a bound, from the sizes of its inputs."""
    match node.operation:
        case Combine():
            size = combined(inputs, (1.0,) * len(inputs))
        case Source() | Activation():
            size = inputs[0]
        case operation:
            size = operation.magnitude().apply(inputs[0])
    return size if node.bias is None else size + node.bias.abs()


def terms_of(graph: Graph, node: Node) -> int:
    """Roundings in one entry of a node's value plus one of its transposed coefficients, a bound.

    The coefficients of an input that several nodes use are sums over those nodes.
    """
    shared = max((graph.uses[j] for j in node.inputs), default=0)
    match node.operation:
        case Combine(signs):
            return len(signs) + shared + EXTRA
        case Source() | Activation():
            return shared + EXTRA
        case operation:
            return operation.terms + shared + EXTRA


def interval_step(graph: Graph, node: Node, inputs: list[Interval]) -> tuple[Interval, Tensor]:
    """A linear node or a sum from the intervals of its inputs, a bound: interval bound propagation.

    And the sizes of what it adds up, as :func:`step_size`. Reference: Gowal et al. 2018.
    """
    eps, tiny = eps_of(graph), tiny_of(graph)
    match node.operation:
        case Combine(signs):
            ends = [
                (p.lower, p.upper) if s > 0 else (-p.upper, -p.lower)
                for p, s in zip(inputs, signs, strict=True)
            ]
            ones = (1.0,) * len(signs)
            lower, upper = combined([e[0] for e in ends], ones), combined([e[1] for e in ends], ones)
            if node.bias is not None:
                lower, upper = lower + node.bias, upper + node.bias
            size = step_size(graph, node, [part.size for part in inputs])
        case operation:
            assert not isinstance(operation, Source | Activation)
            (part,) = inputs
            centre, spread = part.lower / 2 + part.upper / 2, part.upper / 2 - part.lower / 2 + tiny
            middle = operation.apply(centre)
            reach, size = operation.magnitude().apply(torch.cat([spread, part.size])).chunk(2)
            if node.bias is not None:
                middle, size = middle + node.bias, size + node.bias.abs()
            lower, upper = middle - reach, middle + reach
    slack = terms_of(graph, node) * (eps * size + tiny)
    return sound(Interval(lower - slack, upper + slack)), size


def sound(found: Interval) -> Interval:
    """The interval with every NaN, from an overflow, made infinite: a bound again."""
    lower = found.lower.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return Interval(lower, found.upper.nan_to_num(torch.inf, torch.inf, -torch.inf))
