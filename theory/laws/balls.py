"""Laws of what holds in a whole ball: pre-activations, margins, gradients, and certified radii."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from theory.laws.measure import at_most, equal
from theory.laws.relu import (
    attack_points,
    exact_scores,
    law_margins_below_exact,
    law_no_attack_inside,
    rounded_preactivations,
)
from theory.norms import dual, norm
from theory.relu.certificate import certified_radius
from theory.relu.lipschitz import gradient_norms, lipschitz_constants
from theory.types import ReLUNetwork

# Points of the ball are computed in float64: at this fraction of the radius their rounding keeps them inside.
INSIDE = 1 - 1e-9
# Gradients at a point are float64 sums themselves: their error relative to the sum over all paths.
GRADIENT_ROUNDING = 1e-13
# A float64 margin is off by a few roundings of the sizes it sums.
MARGIN_ROUNDING = 1e-13


def points_of(net: ReLUNetwork, x: np.ndarray, radius: float, p: float) -> np.ndarray:
    """Points of the l_p ball around one x: adversarial directions, axes, corners."""
    return attack_points(net, x, INSIDE * radius, p=p)


def encloses_preactivations(
    bounds: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float, radius: np.ndarray
) -> None:
    """Rational pre-activations at points of the ball lie between the bounds."""
    found = bounds(net, x, p=p, radius=radius)
    for e, (point, size) in enumerate(zip(x, radius, strict=True)):
        inside = points_of(net, point, size, p)[::3]
        settled = np.ones(len(inside), dtype=bool)
        for (lower, upper), (value, error) in zip(found, rounded_preactivations(net, inside), strict=False):
            settled &= ((value - error > lower[e]) & (value + error < upper[e])).all(axis=1)
        for corner in inside[~settled]:  # float64 and its rounding cannot tell
            _encloses_exactly([(lower[e], upper[e]) for lower, upper in found], net, corner)


def _encloses_exactly(
    sides: list[tuple[np.ndarray, np.ndarray]], net: ReLUNetwork, point: np.ndarray
) -> None:
    hidden = [Fraction(v) for v in point]
    for (lower, upper), weight, bias in zip(sides, net.weights, net.biases, strict=False):
        before = [
            Fraction(b) + sum(Fraction(w) * h for w, h in zip(row, hidden, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]
        for unit, value in enumerate(before):
            assert lower[unit] == -math.inf or Fraction(lower[unit]) <= value
            assert upper[unit] == math.inf or value <= Fraction(upper[unit])
        hidden = [max(v, Fraction(0)) for v in before]


def bounds_margins(
    margins: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float, radius: np.ndarray
) -> float:
    """Rational margins of the predicted class at points of the ball are at least the bounds."""
    y = net.scores(x).argmax(axis=1)
    closest = math.inf
    found = margins(net, x, y, p=p, radius=radius)
    assert not np.isnan(found).any()
    for row, point, label, size in zip(found, x, y, radius, strict=True):
        inside = points_of(net, point, size, p)[::3]
        rows, labels = np.repeat(row[None], len(inside), axis=0), np.full(len(inside), label)
        closest = min(closest, law_margins_below_exact(rows, net, inside, labels))
    return closest


def bounds_gradients(
    constants: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float, radius: np.ndarray
) -> float:
    """Gradient norms at points of the ball are at most the constants, which are at most the global ones."""
    y = net.scores(x).argmax(axis=1)
    largest = lipschitz_constants(net, p=p)
    paths = math.prod(np.abs(w).sum() for w in net.weights)
    closest = math.inf
    for row, point, label, size in zip(constants(net, x, y, p=p, radius=radius), x, y, radius, strict=True):
        pairs = np.array([(label, k) for k in range(net.classes)])
        found = gradient_norms(net, points_of(net, point, size, p), pairs, p=p).max(axis=0)
        closest = min(closest, at_most(found, row, slack=GRADIENT_ROUNDING * paths))
        assert (row <= largest[label]).all()
    return closest


def bounds_margins_at_points(margins: Callable, net: ReLUNetwork, x: np.ndarray) -> float:
    """Margins (net, x, y) of class 0 are at most their rational values."""
    y = np.zeros(len(x), dtype=np.int64)
    return law_margins_below_exact(margins(net, x, y), net, x, y)


def certifies(certify: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float) -> float:
    """No attack inside the certified ball of the predicted class changes it."""
    y = net.scores(x).argmax(axis=1)
    return law_no_attack_inside(certify(net, x, y, p=p), net, x, y, p=p)


def improves_on_global(certify: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float) -> float:
    """A certificate is never below that of the global Lipschitz constants; a smaller domain caps it."""
    y = net.scores(x).argmax(axis=1)
    assert (certify(net, x, y, p=p, domain_radius=0.25) <= 0.25).all()
    return at_most(certified_radius(net, x, y, p=p), certify(net, x, y, p=p))


def equals_linear_radius(certify: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float) -> float:
    """Without hidden layers the certificate is the exact radius, from below; a tie is certified 0."""
    y = net.scores(x).argmax(axis=1)
    (weight,) = net.weights
    worst = 0.0
    for point, label, found in zip(x, y, certify(net, x, y, p=p), strict=True):
        exact = exact_scores(net, point)
        margins = [float(exact[label] - value) for value in exact]
        if any(m == 0 for k, m in enumerate(margins) if k != label):
            continue
        sizes = norm(weight[label] - weight, p=dual(p))
        radii = [m / s if s else math.inf for m, s in zip(margins, sizes, strict=True) if m or s]
        truth = max(min(radii, default=math.inf), 0.0)
        assert found <= truth * (1 + 1e-15)
        # what rounding is relative to: the sizes of the terms of a margin over the smallest slope
        magnitude = np.abs(weight).max() * (2 * np.abs(point).sum() + 20) + np.abs(net.biases[0]).max()
        rounding = 1e-13 * magnitude / max(sizes[sizes > 0].min(initial=math.inf), 1e-300)
        worst = max(worst, equal(found, truth, scale=truth + 1e12 * rounding, tolerance=1e-12))
    return worst


def equals_linear_margins(
    margins: Callable, net: ReLUNetwork, x: np.ndarray, *, p: float, radius: np.ndarray
) -> float:
    """Without hidden layers the lowest margin on the ball is the margin less radius times ||w_y - w_k||_q."""
    y = net.scores(x).argmax(axis=1)
    each, (weight,) = np.arange(len(y)), net.weights
    scores = net.scores(x)
    truth = scores[each, y][:, None] - scores - radius[:, None] * norm(weight[y][:, None] - weight, p=dual(p))
    truth[each, y] = math.inf
    reach = 1.0 + np.abs(x).max() + radius.max()
    size = reach * np.abs(weight).sum() + np.abs(net.biases[0]).sum() + 1e-290  # underflow allowance
    return equal(margins(net, x, y, p=p, radius=radius), truth, scale=size, tolerance=MARGIN_ROUNDING)
