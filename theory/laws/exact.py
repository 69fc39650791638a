"""Laws of exact radii and exact local Lipschitz constants, for the results of any candidate solver.

The truth is slow and plain: every activation pattern, each with its own projection. For p = inf that is a linear
program; for p = 2 the closest point is the smallest one among the projections on the faces, all of them listed.
Both are float64, so the truth is a bracket: its inequalities loosened and tightened by ``TOLERANCE``.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

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


def pattern_rows(net: ReLUNetwork, x: np.ndarray, pattern: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Slopes (n), values at d = 0 and sizes of each hidden pre-activation and logit under a pattern."""
    slopes, values = np.eye(len(x)), x.copy()
    sizes = np.abs(np.eye(len(x)))
    found = []
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        on = pattern[layer - 1] if layer else np.ones(len(x))
        slopes, values = weight @ (on[:, None] * slopes), weight @ (on * values) + bias
        sizes = np.abs(weight) @ (on[:, None] * sizes)
        found.append((slopes, values, sizes))
    return tuple(np.concatenate([part[i] for part in found]) for i in range(3))


def closest(slopes: np.ndarray, values: np.ndarray, sizes: np.ndarray, *, p: float, shift: float) -> float:
    """min ||d||_p with slopes . d + values <= shift ||slopes||_q, row by row; inf where there is none."""
    length = norm(slopes, p=dual(p))
    zero = length <= CANCELLED * norm(sizes, p=dual(p))
    if (values[zero] > CANCELLED * (1 + np.abs(values).max())).any():
        return math.inf
    rows, right = slopes[~zero] / length[~zero, None], shift - values[~zero] / length[~zero]
    if (right >= 0).all():
        return 0.0
    return _closest_box(rows, right) if p == math.inf else _closest_point(rows, right)


def _closest_box(rows: np.ndarray, right: np.ndarray) -> float:
    n = rows.shape[1]
    scale = np.abs(right).max()
    box = np.concatenate([np.eye(n), -np.eye(n)])
    table = np.block([[rows, np.zeros((len(rows), 1))], [box, -np.ones((2 * n, 1))]])
    limits = np.concatenate([right / scale, np.zeros(2 * n)])
    found = linprog(np.eye(n + 1)[n], A_ub=table, b_ub=limits, bounds=(None, None), method="highs")
    return scale * found.fun if found.status == 0 else math.inf


def _closest_point(rows: np.ndarray, right: np.ndarray) -> float:
    best = math.inf
    for size in range(1, rows.shape[1] + 1):
        faces = np.array(list(itertools.combinations(range(len(rows)), size)))
        if not len(faces):
            continue
        points = (np.linalg.pinv(rows[faces]) @ right[faces][..., None])[..., 0]
        inside = (points @ rows.T <= right + FEASIBLE * np.abs(right).max()).all(axis=1)
        best = min(best, norm(points[inside], p=2.0).min(initial=math.inf))
    return best


def enumerated_radius(net: ReLUNetwork, x: np.ndarray, label: int, *, p: float, shift: float = 0.0) -> float:
    """Smallest perturbation that changes the class, over all patterns and all classes."""
    hidden = sum(len(bias) for bias in net.biases[:-1])
    best = math.inf
    for pattern in activation_patterns(net):
        slopes, values, sizes = pattern_rows(net, x, pattern)
        sign = np.concatenate([*pattern, []])[:, None] * -2 + 1  # z >= 0 where on, so -z <= 0
        for k in set(range(net.classes)) - {label}:
            rows = [a[:hidden] for a in (slopes, values, sizes)]
            margin = [a[hidden + label] - a[hidden + k] for a in (slopes, values)]
            size = sizes[hidden + label] + sizes[hidden + k]
            found = closest(
                np.concatenate([sign * rows[0], margin[0][None]]),
                np.concatenate([sign[:, 0] * rows[1], margin[1][None]]),
                np.concatenate([rows[2], size[None]]),
                p=p,
                shift=shift,
            )
            best = min(best, found)
    return best


def enumerated_lipschitz(
    net: ReLUNetwork, x: np.ndarray, label: int, radius: float, *, p: float, shift: float
) -> np.ndarray:
    """Largest gradient norms of g_y - g_k over the patterns that come within ``radius`` (1 + shift)."""
    hidden = sum(len(bias) for bias in net.biases[:-1])
    largest = np.zeros(net.classes)
    for pattern in activation_patterns(net):
        slopes, values, sizes = pattern_rows(net, x, pattern)
        sign = np.concatenate([*pattern, []])[:, None] * -2 + 1
        rows = (sign * slopes[:hidden], sign[:, 0] * values[:hidden], sizes[:hidden])
        if not hidden or closest(*rows, p=p, shift=shift * radius) <= radius * (1 + shift):
            gradients = slopes[hidden + label] - slopes[hidden:]
            largest = np.maximum(largest, norm(gradients, p=dual(p)))
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
) -> None:
    """The bounds enclose the radius over all patterns, and where the status says so they meet there."""
    for e, label in enumerate(y):
        scale = found.upper[e] if math.isfinite(found.upper[e]) else found.lower[e]
        if scale == 0:
            scores = exact_scores(net, x[e])
            assert any(score >= scores[label] for k, score in enumerate(scores) if k != label)
            continue
        step = TOLERANCE * scale if math.isfinite(scale) else TOLERANCE
        early, late = (
            min(enumerated_radius(net, x[e], int(label), p=p, shift=s), domain_radius) for s in (step, -step)
        )
        assert found.lower[e] <= late * (1 + TOLERANCE), (found.lower[e], early, late)
        assert found.upper[e] >= early * (1 - TOLERANCE), (found.upper[e], early, late)
        if found.status[e] in ("optimal", "capped"):
            assert found.upper[e] - found.lower[e] <= gap * found.upper[e] or math.isinf(found.lower[e])
            assert found.lower[e] >= early * (1 - TOLERANCE - gap), (found.lower[e], early, late)
            assert found.upper[e] <= late * (1 + TOLERANCE + gap), (found.upper[e], early, late)


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
) -> None:
    """The bounds enclose the steepest pattern that meets the ball, and meet there where the status says so."""
    for e, label in enumerate(y):
        inner, outer = (
            enumerated_lipschitz(net, x[e], int(label), radius[e], p=p, shift=s) for s in (-TOLERANCE, TOLERANCE)
        )
        # Gradients over a pattern are float64 sums over paths.
        paths = CANCELLED * math.prod(float(np.abs(w).sum()) for w in net.weights)
        assert (found.lower[e] <= outer * (1 + TOLERANCE) + paths).all(), (found.lower[e], outer)
        assert (found.upper[e] >= inner * (1 - TOLERANCE) - paths).all(), (found.upper[e], inner)
        if found.status[e] == "optimal":
            assert (found.upper[e] <= found.lower[e] * (1 + 2 * gap)).all()


def law_lipschitz_sandwich(sampled: np.ndarray, found: ExactLipschitz, bound: np.ndarray, *, gap: float) -> None:
    """Gradient norms at points of the ball <= exact upper; exact lower <= exact upper <= (1 + gap) any bound."""
    assert (found.lower <= found.upper).all()
    assert (sampled <= found.upper * (1 + FEASIBLE)).all()
    assert (found.lower <= bound).all()
    assert (found.upper <= bound * (1 + gap)).all()
