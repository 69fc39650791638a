"""Backward linear relaxation: functionals of a node as lines that fall with the radius of the ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.graph.affine import AffinePart, reaches
from theory.graph.network import Activation, Combine, Graph, Source
from theory.graph.relaxation import EXTRA, Ball, Interval, Lines, eps_of, terms_of, tiny_of


@dataclass(frozen=True)
class NodeBounds:
    """Intervals of every node of a graph over the balls, the lines around its activations, the values of its
    affine nodes at the centres, each with a bound of its rounding error, and the sizes of what its others add
    up."""

    intervals: tuple[Interval, ...]
    lines: dict[int, Lines]
    centres: dict[int, tuple[Tensor, Tensor]]
    steps: dict[int, Tensor]

    @property
    def sizes(self) -> list[Tensor]:
        """The largest absolute value of every entry of every node."""
        return [interval.size for interval in self.intervals]

    def take(self, rows: Tensor) -> NodeBounds:
        """The bounds of some examples."""
        intervals = tuple(interval.take(rows) for interval in self.intervals)
        lines = {i: line.take(rows) for i, line in self.lines.items()}
        centres = {i: (value[rows], error[rows]) for i, (value, error) in self.centres.items()}
        return NodeBounds(intervals, lines, centres, {i: size[rows] for i, size in self.steps.items()})


@dataclass(frozen=True)
class Falling:
    """Lower bounds start - radius * slope, valid for every radius up to that of the ball: (m, r) each."""

    start: Tensor
    slope: Tensor

    def at(self, radius: Tensor) -> Tensor:
        """The bounds at radii (m,); -inf where they overflow."""
        spread = radius[:, None] * self.slope
        eps = torch.finfo(spread.dtype).eps
        bound = self.start - spread - 2 * eps * (self.start.abs() + spread)
        return torch.where(bound.isnan(), -torch.inf, bound)

    def roots(self) -> Tensor:
        """Radii at which the bounds are still positive, as large as the lines allow, or 0: (m, r)."""
        eps = torch.finfo(self.start.dtype).eps
        ratio = self.start / self.slope * (1 - 16 * eps)
        return torch.where((self.start > 0) & self.start.isfinite(), ratio, 0.0).nan_to_num(0.0, torch.inf)


def lower_bounds(
    graph: Graph,
    node: int,
    rows: Tensor,
    found: NodeBounds,
    ball: Ball,
    part: AffinePart,
    *,
    offset: Tensor | None = None,
) -> Falling:
    """Lower bounds over the ball of rows . value(node) + offset, a bound by backward linear relaxation.

    ``rows`` is (1 or m, r, *shape) and may be the same for all examples. Every activation below ``node`` is
    replaced, backwards, by the line below or above it that the sign of its coefficient asks for; affine nodes
    count with their value at the centre. The sizes in ``found`` turn errors of coefficients into errors of
    the result.

    Reference: Zhang et al. 2018, Theorem 3.2 (CROWN); Xu et al. 2020 for graphs.
    """
    eps, tiny, sizes = eps_of(graph), tiny_of(graph), found.sizes
    total = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device) if offset is None else offset
    slack, spread = eps * total.abs(), torch.zeros_like(total)
    arriving, affine = {node: rows}, {}
    most = EXTRA
    for i in range(node, -1, -1):
        if i not in arriving:
            continue
        coefficients, here = arriving.pop(i), graph.nodes[i]
        count = math.prod(coefficients.shape[2:]) + EXTRA
        most = max(most, count)
        if graph.linear[i]:
            affine[i] = coefficients
            value, error = found.centres[i]
            weight = error + count * (eps * value.abs() + tiny)
            errors = torch.zeros_like(value[:1]) if part.still else part.errors[i][None]
            (plain,), (absolute, moved) = (
                _dots(coefficients, [value]),
                _dots(coefficients.abs(), [weight, errors]),
            )
            total, spread = total + plain, spread + moved
            slack = slack + absolute + count * tiny + 2 * eps * total.abs()
            continue
        size = found.steps[i] if i in found.steps else sizes[here.inputs[0]]
        signed = [] if here.bias is None else [here.bias.expand(here.shape)[None]]
        intercepts: list[tuple[float, Tensor]] = []
        match here.operation:
            case Activation():
                line = found.lines[i]
                intercepts = [(s, t) for s, t in ((1.0, line.low), (-1.0, line.high)) if t is not None]
                signed += [intercept for _, intercept in intercepts]
                below = line.below[:, None] if line.below.dim() < coefficients.dim() else line.below
                # Of the two parts one is 0; choosing between slopes instead would take several times as long.
                positive = coefficients.clamp(min=0.0) * below
                met = torch.addcmul(positive, coefficients.clamp(max=0.0), line.above[:, None])
                passed = [(here.inputs[0], met)]
                size = size + sizes[i]
            case Combine(signs):
                passed = [
                    (j, coefficients if s == 1 else s * coefficients)
                    for j, s in zip(here.inputs, signs, strict=True)
                ]
            case operation:
                assert not isinstance(operation, Source)
                back = operation.transpose(coefficients.flatten(0, 1))
                passed = [(here.inputs[0], back.unflatten(0, coefficients.shape[:2]))]
        # The two sums, through the node and with its constants, are rounded apart.
        terms = terms_of(graph, here)
        weight = terms * size
        for value in signed:
            weight = weight + count * value.abs()
        below_size = sum((sizes[j].flatten(1).sum(1) for j in here.inputs), start=size.flatten(1).sum(1))
        # A positive coefficient meets the lower intercept, a negative one the upper: (c +- |c|) / 2 each.
        absolute = _dots(coefficients.abs(), [weight, torch.ones_like(size[:1]), *(t for _, t in intercepts)])
        plain = _dots(coefficients, signed) if signed else []
        if here.bias is not None:
            total = total + plain.pop(0)
        for (sign, _), mixed, sized in zip(intercepts, plain, absolute[2:], strict=True):
            total = total + (mixed + sign * sized) / 2
        slack = slack + eps * absolute[0]
        slack = slack + (terms + count) * tiny * (absolute[1] + below_size[:, None] + 1)
        slack = slack + 2 * eps * total.abs()
        for j, more in passed:
            arriving[j] = arriving[j] + more if j in arriving else more
    slope = torch.zeros_like(total) if part.still else reaches(graph, part, affine, spread)
    start = total - slack * (1 + 64 * most * eps) - 4 * eps * total.abs()
    examples = len(ball.radius)
    return Falling(start.expand(examples, -1), slope.expand(examples, -1))


def _dots(coefficients: Tensor, values: list[Tensor]) -> list[Tensor]:
    """Inner products of (1 or m, r, *shape) with several (1 or m, *shape), in one pass: (m, r) each."""
    left = coefficients.flatten(2)
    examples = max(len(value) for value in values)
    right = torch.stack([value.flatten(1).expand(examples, -1) for value in values], dim=1)
    if len(left) == 1:
        product = (right.flatten(0, 1) @ left[0].mT).unflatten(0, right.shape[:2])
    elif examples == 1:
        product = (right[0] @ left.flatten(0, 1).mT).unflatten(1, left.shape[:2]).transpose(0, 1)
    else:
        product = torch.bmm(right, left.mT)
    return list(product.unbind(1))
