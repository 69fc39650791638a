"""Laws of exact radii and exact local Lipschitz constants, for the results of any candidate solver.

The truth is slow and plain: every activation pattern, each with its own projection. For p = inf that is a
linear program; for p = 2 the closest point is the smallest one among the projections on the faces, all of
them listed. Both are float64, so the truth is a bracket: its inequalities loosened and tightened by
``TOLERANCE``.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

from theory.laws.measure import at_most
from theory.laws.relu import activation_patterns, exact_scores
from theory.norms import dual, norm
from theory.relu.exact import ExactRadius
from theory.relu.exact_lipschitz import ExactLipschitz
from theory.types import ReLUNetwork

# Relative to the distances compared. HiGHS keeps constraints to 1e-7 and rows have unit norm: ten times that.
TOLERANCE = 1e-6
# A row this small beside the sum over its paths is zero up to rounding.
CANCELLED = 1e-12
FEASIBLE = 1e-9
REACH = 1e4


Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # slopes, values at d = 0, and the sizes of both


def pattern_rows(net: ReLUNetwork, x: np.ndarray, label: int, pattern: list[np.ndarray]) -> Rows:
    """Every hidden pre-activation, then every g_y - g_k, as a line in d; sizes are sums over paths."""
    slopes, values, steep, large = np.eye(len(x)), x.copy(), np.eye(len(x)), np.abs(x)
    found = []
    weights = [*net.weights[:-1], net.weights[-1][label] - net.weights[-1]]
    biases = [*net.biases[:-1], net.biases[-1][label] - net.biases[-1]]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        through = weight * pattern[layer - 1] if layer else weight
        slopes, values = through @ slopes, through @ values + bias
        steep, large = np.abs(through) @ steep, np.abs(through) @ large + np.abs(bias)
        found.append((slopes, values, steep, large))
    slopes, values, steep, large = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return slopes, values, steep, large


def pattern_constraints(rows: Rows, pattern: list[np.ndarray]) -> Rows:
    """The hidden units' lines, turned so that they are <= 0 where the pattern holds."""
    sign = 1.0 - 2.0 * np.concatenate([*pattern, []])
    slopes, values, steep, large = (part[: len(sign)] for part in rows)
    return sign[:, None] * slopes, sign * values, steep, large


def closest(rows: Rows, *, p: float, shift: float, scale: float) -> float:
    """min ||d||_p with slopes . d + values <= shift ||slopes||_q, row by row; inf where there is none.

    Good for distances up to ``REACH`` times ``scale``, above which it may be too large.
    """
    slopes, values, steep, large = rows
    length = norm(slopes, p=dual(p))
    zero = length <= CANCELLED * norm(steep, p=dual(p))
    if (values[zero] > CANCELLED * large[zero]).any():
        return math.inf
    slopes, right = slopes[~zero] / length[~zero, None], (shift - values[~zero] / length[~zero]) / scale
    if (right >= 0).all():
        return 0.0
    if right.min() < -REACH:
        return math.inf
    return scale * (_closest_box if p == math.inf else _closest_point)(slopes, np.minimum(right, REACH))


def _closest_box(rows: np.ndarray, right: np.ndarray) -> float:
    n = rows.shape[1]
    box = np.concatenate([np.eye(n), -np.eye(n)])
    table = np.block([[rows, np.zeros((len(rows), 1))], [box, -np.ones((2 * n, 1))]])
    limits = np.concatenate([right, np.zeros(2 * n)])
    found = linprog(np.eye(n + 1)[n], A_ub=table, b_ub=limits, bounds=(None, None), method="highs")
    return found.fun if found.status == 0 else math.inf


def _closest_point(rows: np.ndarray, right: np.ndarray) -> float:
    best = math.inf
    for size in range(1, rows.shape[1] + 1):
        faces = np.array(list(itertools.combinations(range(len(rows)), size)))
        if not len(faces):
            continue
        points = (np.linalg.pinv(rows[faces]) @ right[faces][..., None])[..., 0]
        inside = (points @ rows.T <= right + FEASIBLE).all(axis=1)
        best = min(best, norm(points[inside], p=2.0).min(initial=math.inf))
    return best


def enumerated_radius(
    net: ReLUNetwork, x: np.ndarray, label: int, *, p: float, shift: float = 0.0, scale: float = 1.0
) -> float:
    """Smallest perturbation that changes the class, over all patterns and all classes; arguments as above."""
    best = math.inf
    for pattern in activation_patterns(net):
        rows = pattern_rows(net, x, label, pattern)
        hidden = pattern_constraints(rows, pattern)
        for k in set(range(net.classes)) - {label}:
            slopes, values, steep, large = (
                np.concatenate([part, every[k - net.classes][None]])
                for part, every in zip(hidden, rows, strict=True)
            )
            best = min(best, closest((slopes, values, steep, large), p=p, shift=shift, scale=scale))
    return best


def enumerated_lipschitz(
    net: ReLUNetwork, x: np.ndarray, label: int, radius: float, *, p: float, shift: float
) -> np.ndarray:
    """Largest gradient norms of g_y - g_k over the patterns that come within ``radius`` (1 + shift)."""
    largest = np.zeros(net.classes)
    for pattern in activation_patterns(net):
        rows = pattern_rows(net, x, label, pattern)
        hidden = pattern_constraints(rows, pattern)
        if not len(hidden[0]) or closest(hidden, p=p, shift=shift * radius, scale=radius) <= radius * (
            1 + shift
        ):
            largest = np.maximum(largest, norm(rows[0][-net.classes :], p=dual(p)))
    return largest


# ---- Radii


def law_bounds_are_witnessed(
    found: ExactRadius, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, *, p: float
) -> None:
    """0 <= lower <= upper; x_adv changes the class in exact arithmetic and is no further than upper."""
    for point, label, low, high, adv in zip(x, y, found.lower, found.upper, found.x_adv, strict=True):
        assert 0 <= low <= high
        if np.isnan(adv).any():
            continue
        scores = exact_scores(net, adv)
        assert any(score >= scores[label] for k, score in enumerate(scores) if k != label)
        steps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(adv, point, strict=True)]
        if math.isfinite(high):
            assert (max(steps) if p == math.inf else sum(s * s for s in steps)) <= (
                Fraction(high) if p == math.inf else Fraction(high) ** 2
            )


def law_radius_equals_enumeration(
    found: ExactRadius,
    net: ReLUNetwork,
    x: np.ndarray,
    y: np.ndarray,
    *,
    p: float,
    gap: float,
    domain_radius: float = math.inf,
) -> float:
    """The bounds enclose the radius over all patterns, and where the status says so they meet there."""
    ratio = math.inf
    for e, label in enumerate(y):
        scale = found.upper[e] if math.isfinite(found.upper[e]) else found.lower[e]
        if scale == 0:
            scores = exact_scores(net, x[e])
            assert any(score >= scores[label] for k, score in enumerate(scores) if k != label)
            continue
        scale = scale if math.isfinite(scale) else 1.0
        early, late = (
            min(enumerated_radius(net, x[e], int(label), p=p, shift=s * scale, scale=scale), domain_radius)
            for s in (TOLERANCE, -TOLERANCE)
        )
        below = at_most(found.lower[e], late, slack=late * TOLERANCE)
        ratio = min(ratio, below, at_most(early, found.upper[e], slack=found.upper[e] * TOLERANCE))
        if found.status[e] in ("optimal", "capped"):
            assert found.lower[e] >= found.upper[e] * (1 - gap)
            assert found.lower[e] >= early * (1 - TOLERANCE - gap), (found.lower[e], early, late)
            assert found.upper[e] <= late * (1 + TOLERANCE + gap), (found.upper[e], early, late)
    return ratio


def law_sandwich(certified: np.ndarray, found: ExactRadius, attacked: np.ndarray) -> None:
    """certified <= exact lower <= exact upper, and exact lower <= the distance any attack needed."""
    assert (certified <= found.lower).all()
    assert (found.lower <= found.upper).all()
    assert (found.lower <= attacked).all()


# ---- Local Lipschitz constants


def law_lipschitz_equals_enumeration(
    found: ExactLipschitz,
    net: ReLUNetwork,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    *,
    p: float,
    gap: float,
) -> float:
    """The bounds enclose the steepest pattern that meets the ball, and meet where the status says so."""
    ratio = math.inf
    for e, label in enumerate(y):
        inner, outer = (
            enumerated_lipschitz(net, x[e], int(label), radius[e], p=p, shift=s)
            for s in (-TOLERANCE, TOLERANCE)
        )
        # Gradients over a pattern are float64 sums over paths.
        paths = CANCELLED * math.prod(float(np.abs(w).sum()) for w in net.weights)
        below = at_most(found.lower[e], outer, slack=outer * TOLERANCE + paths)
        ratio = min(ratio, below, at_most(inner, found.upper[e], slack=inner * TOLERANCE + paths))
        if found.status[e] == "optimal":
            assert (found.upper[e] <= found.lower[e] * (1 + 2 * gap)).all()
    return ratio


def law_lipschitz_sandwich(sampled: np.ndarray, found: ExactLipschitz, bound: np.ndarray) -> float:
    """Gradient norms in the ball <= exact upper; exact lower <= exact upper <= interval Jacobian."""
    assert (found.lower <= found.upper).all()
    steepest = at_most(sampled, found.upper, slack=found.upper * FEASIBLE)
    return min(steepest, at_most(found.upper, bound))
