"""Laws of the linear theory, as functions that take the formula under test and raise AssertionError.

Taking the formula as an argument lets a test show that each law rejects a wrong formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import numpy as np
from scipy.optimize import linprog

from theory.linear import ClassStatistics, class_statistics, mean_radius, radius
from theory.linear.exact import rows
from theory.norms import norm
from theory.types import BinaryLinear, LinearClassifier

Linear = BinaryLinear | LinearClassifier

# Sums of at most a few hundred products, each rounded to 1.1e-16 of the largest: 1e-12 leaves room.
ROUNDING = 1e-12
# Step past a boundary, relative to the distance and to the size of the scores that must change sign.
NUDGE = 1e-6
# HiGHS stops at a primal and dual infeasibility of 1e-7.
SOLVER = 1e-6


def size(clf: Linear, x: np.ndarray, *, p: float) -> float:
    """What rounding is relative to: the largest |w|.|x| + |b| over the smallest non-zero ||w||_q."""
    weight, bias = rows(clf).weight, rows(clf).bias
    gaps = norm(weight[:, None] - weight, p=1.0 if p == math.inf else 2.0)
    scores = np.abs(x) @ np.abs(weight).T + np.abs(bias)
    return float(scores.max() / gaps[gaps > 0].min(initial=math.inf))


def _close(actual: float, expected: float, *, scale: float) -> None:
    same = actual == expected or abs(actual - expected) <= ROUNDING * (scale + abs(expected))
    assert same, f"{actual} is not {expected} (scale {scale})"


def _at_most(lower: float, upper: float, *, scale: float) -> None:
    assert lower <= upper + ROUNDING * scale, f"{lower} exceeds {upper} (scale {scale})"


def _steepest(clf: Linear, y: np.ndarray, *, p: float) -> np.ndarray:
    """(m, c, n): the unit l_p step that closes the margin of y over j fastest, 0 where the rows are equal."""
    weight = rows(clf).weight
    gap = weight - weight[y][:, None]
    if p == math.inf:
        return np.sign(gap)
    length = norm(gap, p=2.0)[..., None]
    return np.divide(gap, length, out=np.zeros_like(gap), where=length > 0)


def _decided(clf: Linear, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m,): the lowest margin of the labelled class over the others."""
    weight, bias = rows(clf).weight, rows(clf).bias
    margin = np.einsum("mcn,mn->mc", weight[y][:, None] - weight, x) + bias[y][:, None] - bias
    margin[np.arange(len(y)), y] = math.inf
    return margin.min(axis=1)


def ball_is_safe(candidate: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """No point of the open ball changes a correct decision: not even the steepest step to any boundary."""
    found = candidate(clf, x, y, p=p)
    assert (found >= 0).all()
    slack = ROUNDING * size(clf, x, p=p)
    reach = np.where(np.isinf(found), 1e3, np.maximum(found * (1 - NUDGE) - slack, 0.0))
    wrong = _decided(clf, x, y) <= 0
    assert (found[wrong] <= slack).all(), "a misclassified point has a positive radius"
    steps = _steepest(clf, y, p=p)
    for j in range(steps.shape[1]):
        moved = _decided(clf, x + reach[:, None] * steps[:, j], y)
        assert (moved[reach > 0] > 0).all(), f"a step inside the ball reaches class {j}"


def boundary_is_reached(candidate: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """Some step just longer than a finite radius changes the decision."""
    found = candidate(clf, x, y, p=p)
    slack = ROUNDING * size(clf, x, p=p)
    finite = np.isfinite(found)
    reach = np.where(finite, found * (1 + NUDGE) + slack, 0.0)
    steps = _steepest(clf, y, p=p)
    lowest = np.min(
        [_decided(clf, x + reach[:, None] * steps[:, j], y) for j in range(steps.shape[1])], axis=0
    )
    assert (lowest[finite] <= 0).all(), "the decision survives a step longer than the radius"


def radius_ignores_scale(
    candidate: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float, factor: float
) -> None:
    """Multiplying weights and biases by a positive power of two changes no bit."""
    if isinstance(clf, BinaryLinear):
        scaled = BinaryLinear(clf.weight * factor, clf.bias * factor)
    else:
        scaled = LinearClassifier(clf.weight * factor, clf.bias * factor)
    np.testing.assert_array_equal(candidate(scaled, x, y, p=p), candidate(clf, x, y, p=p))


def radius_is_exact(candidate: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """The radius (p = inf) or its square (p = 2) equals the definition in exact rational arithmetic."""
    power = 1 if p == math.inf else 2
    weight = [[Fraction(v) for v in row] for row in rows(clf).weight]
    bias = [Fraction(v) for v in rows(clf).bias]
    scale = size(clf, x, p=p)
    for point, k, found in zip(x, y, candidate(clf, x, y, p=p), strict=True):
        best: float | Fraction = math.inf
        for j in range(len(weight)):
            gap = [a - b for a, b in zip(weight[k], weight[j], strict=True)]
            margin = sum(g * Fraction(v) for g, v in zip(gap, point, strict=True)) + bias[k] - bias[j]
            if j != k and margin <= 0:
                best = Fraction(0)
            elif j != k and any(gap):
                best = min(best, margin**power / sum(abs(g) ** power for g in gap))
        _close(found, float(best) ** (1 / power), scale=scale)


def integrates_to(
    robust_accuracy: Callable,
    average: Callable,
    clf: Linear,
    x: np.ndarray,
    y: np.ndarray,
    *,
    p: float,
    cap: float,
) -> None:
    """The integral of robust accuracy over 0 <= eps <= cap is the mean radius capped there.

    Robust accuracy is a staircase with steps at the radii, so its values between them give the integral.
    """
    knots = np.unique([0.0, *np.minimum(radius(clf, x, y, p=p), cap), cap])
    levels = [robust_accuracy(clf, x, y, p=p, eps=middle) for middle in (knots[:-1] + knots[1:]) / 2]
    assert levels == sorted(levels, reverse=True)
    _close(average(clf, x, y, p=p, cap=cap), float(np.diff(knots) @ levels), scale=cap)


def matches_sample(formula: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """A formula in the class statistics equals the average of the radii over the sample."""
    stats = class_statistics(clf, x, y)
    _close(formula(clf, stats, p=p), mean_radius(clf, x, y, p=p), scale=size(clf, x, p=p))


def limits_sample(bound: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """A bound of a classifier and its statistics is never below the mean radius of the sample."""
    stats = class_statistics(clf, x, y)
    _at_most(mean_radius(clf, x, y, p=p), bound(clf, stats, p=p), scale=size(clf, x, p=p))


def limits_statistics(ceiling: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """A ceiling that sees only the statistics is never below the mean radius of the sample."""
    limits_sample(lambda _, stats, *, p: ceiling(stats, p=p), clf, x, y, p=p)


def limits_robust_accuracy(
    bound: Callable,
    robust_accuracy: Callable,
    clf: Linear,
    x: np.ndarray,
    y: np.ndarray,
    *,
    p: float,
    eps: float,
) -> None:
    """A bound of P(rho > eps) holds on the sample; at a step of the staircase rounding may decide."""
    limit = bound(clf, class_statistics(clf, x, y), p=p, eps=eps)
    beyond = eps * (1 + NUDGE) + ROUNDING * size(clf, x, p=p)
    _at_most(robust_accuracy(clf, x, y, p=p, eps=beyond), limit, scale=1.0)
    _at_most(limit, float(class_statistics(clf, x, y).mass.sum()), scale=1.0)


def is_approached(ceiling: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """The ceiling is the mean radius of this classifier, up to the nudge that keeps every input correct."""
    stats = class_statistics(clf, x, y)
    assert (stats.accuracy == 1).all(), "the witness must classify every input correctly"
    attained = mean_radius(clf, x, y, p=p)
    assert abs(ceiling(stats, p=p) - attained) <= 10 * NUDGE * attained


def interpolates(bounds: Callable, clf: Linear, x: np.ndarray, y: np.ndarray) -> None:
    """The l_inf radius of every point and their mean lie between the ends computed from the l_2 radius."""
    low, high = bounds(clf, radius(clf, x, y, p=2.0))
    exact = radius(clf, x, y, p=math.inf)
    slack = ROUNDING * size(clf, x, p=2.0)
    assert (low <= exact + slack).all()
    assert (exact <= high + slack).all()


def solves_pair_program(ceiling: Callable, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """The ceiling is the largest mean of r >= 0 with r_i + r_j <= ||x_i - x_j||_p across labels."""
    _close_to_program(ceiling(x, y, p=p), x, np.full(len(y), 1 / len(y)), labels=y, p=p)


def relaxes(ceiling: Callable, exact: Callable, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """A cheaper ceiling is never below the exact one."""
    _at_most(exact(x, y, p=p), ceiling(x, y, p=p), scale=float(np.abs(x).max()))


def solves_mean_program(bound: Callable, stats: ClassStatistics, *, p: float) -> None:
    """The bound is the largest sum_k mass_k r_k with r_k + r_j <= ||mu_k - mu_j||_p among classes in use."""
    used = np.flatnonzero(stats.mass > 0)
    _close_to_program(bound(stats, p=p), stats.mean[used], stats.mass[used], labels=used, p=p)


def _close_to_program(
    value: float, points: np.ndarray, mass: np.ndarray, *, labels: np.ndarray, p: float
) -> None:
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] != labels[j]]
    sums = np.zeros((len(pairs), len(labels)))
    for row, pair in zip(sums, pairs, strict=True):
        row[list(pair)] = 1.0
    distance = norm(np.array([points[i] - points[j] for i, j in pairs]), p=p)
    unit = distance.max() or 1.0
    best = linprog(-mass, A_ub=sums, b_ub=distance / unit, method="highs")
    assert abs(value + best.fun * unit) <= SOLVER * unit, f"{value} is not {-best.fun * unit}"


def limits_every_classifier(
    ceiling: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float
) -> None:
    """A ceiling (x, y, correct) is never below the mean radius of the classifier with that correct set."""
    limit = ceiling(x, y, _decided(clf, x, y) > 0, p=p)
    _at_most(mean_radius(clf, x, y, p=p), limit, scale=size(clf, x, p=p))
