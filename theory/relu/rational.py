"""A network at one point in rational arithmetic: the last word on who wins, who ties and how steep it is.

Every float is a fraction, so nothing here is rounded until a result is turned into a float. Slow (a
microsecond or two for each non-zero weight) and meant for points that floating point cannot decide.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.types import ReLUNetwork

Vector = list[Fraction]


def rational_layers(net: ReLUNetwork, x: Float[Array, " n"]) -> list[Vector]:
    """Pre-activations of every layer at ``x``, an identity in fractions; the last entry holds the logits."""
    hidden = [Fraction(value) for value in x]
    layers = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        hidden = [max(h, Fraction(0)) for h in hidden] if layers else hidden
        hidden = [
            sum((Fraction(row[j]) * hidden[j] for j in np.flatnonzero(row)), Fraction(b))
            for row, b in zip(weight, bias, strict=True)
        ]
        layers.append(hidden)
    return layers


def loses(net: ReLUNetwork, x: Float[Array, " n"], label: int) -> bool:
    """Whether some class scores at least as high as ``label`` at ``x``, an identity in exact arithmetic."""
    scores = rational_layers(net, x)[-1]
    return any(score >= scores[label] for k, score in enumerate(scores) if k != label)


def gradient_norm(net: ReLUNetwork, x: Float[Array, " n"], label: int, other: int, *, q: float) -> float:
    """||grad (g_label - g_other)(x)||_q rounded down, a bound; 0 where ``x`` may be on a kink.

    ``x`` is on no kink if every pre-activation differs from 0, or is 0 all around ``x``.
    """
    layers = rational_layers(net, x)[:-1]
    inner: list[Vector] = [[Fraction(int(i == j)) for j in range(len(x))] for i in range(len(x))]
    if any(value == 0 for layer in layers for value in layer):
        for weight, layer in zip(net.weights, layers, strict=False):
            inner = [_pull([Fraction(w) for w in row], inner) for row in weight]
            if any(value == 0 and any(row) for value, row in zip(layer, inner, strict=True)):
                return 0.0
            inner = [
                row if value > 0 else [Fraction(0)] * len(x) for value, row in zip(layer, inner, strict=True)
            ]
    last = net.weights[-1]
    row = [Fraction(a) - Fraction(b) for a, b in zip(last[label], last[other], strict=True)]
    for weight, layer in zip(reversed(net.weights[:-1]), reversed(layers), strict=True):
        row = [r if value > 0 else Fraction(0) for r, value in zip(row, layer, strict=True)]
        row = _pull(row, [[Fraction(w) for w in line] for line in weight])
    return (
        down(sum(map(abs, row), Fraction(0))) if q == 1 else root_down(sum((r * r for r in row), Fraction(0)))
    )


def down(value: Fraction) -> float:
    """The largest float <= ``value`` >= 0, a bound."""
    try:
        nearest = float(value)
    except OverflowError:
        return float(np.finfo(np.float64).max)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, 0.0)


def root_down(value: Fraction) -> float:
    """sqrt(value) for ``value`` >= 0 rounded down, a bound: to 60 bits, then to a float."""
    shift = max(0, 120 - value.numerator.bit_length() + value.denominator.bit_length()) // 2 + 1
    root = math.isqrt((value.numerator << 2 * shift) // value.denominator)
    return down(Fraction(root, 1 << shift))


def _pull(row: Vector, lines: list[Vector]) -> Vector:
    """row . lines, skipping zeros."""
    total = [Fraction(0)] * len(lines[0])
    for factor, line in zip(row, lines, strict=True):
        if factor:
            total = [t + factor * value if value else t for t, value in zip(total, line, strict=True)]
    return total
