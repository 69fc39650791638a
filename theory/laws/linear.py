"""Laws of the linear theory, as functions that take the formula under test and raise AssertionError.

Taking the formula as an argument lets a test show that each law rejects a wrong formula. A law of a bound
returns the ratio bound / truth, a law of an identity the relative error (``theory.laws.measure``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import numpy as np
from scipy.optimize import linprog

from theory.laws.measure import at_most, equal
from theory.linear import (
    ClassStatistics,
    binary_mean_radius,
    boundary_distances,
    class_statistics,
    mean_radius,
    paper_multiclass_bound,
    radius,
    robust_accuracy,
    weight_free_bound,
)
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


def _close(actual: float, expected: float, *, scale: float) -> float:
    return equal(actual, expected, scale=scale + abs(expected), tolerance=ROUNDING)


def _at_most(lower: float, upper: float, *, scale: float) -> float:
    return at_most(lower, upper, slack=ROUNDING * scale)


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


def radius_is_exact(candidate: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """The radius (p = inf) or its square (p = 2) equals the definition in exact rational arithmetic."""
    power = 1 if p == math.inf else 2
    weight = [[Fraction(v) for v in row] for row in rows(clf).weight]
    bias = [Fraction(v) for v in rows(clf).bias]
    scale, worst = size(clf, x, p=p), 0.0
    for point, k, found in zip(x, y, candidate(clf, x, y, p=p), strict=True):
        best: float | Fraction = math.inf
        for j in range(len(weight)):
            gap = [a - b for a, b in zip(weight[k], weight[j], strict=True)]
            margin = sum(g * Fraction(v) for g, v in zip(gap, point, strict=True)) + bias[k] - bias[j]
            if j != k and margin <= 0:
                best = Fraction(0)
            elif j != k and any(gap):
                best = min(best, margin**power / sum(abs(g) ** power for g in gap))
        worst = max(worst, _close(found, float(best) ** (1 / power), scale=scale))
    return worst


def integrates_to(
    robust_accuracy: Callable,
    average: Callable,
    clf: Linear,
    x: np.ndarray,
    y: np.ndarray,
    *,
    p: float,
    cap: float,
) -> float:
    """The integral of robust accuracy over 0 <= eps <= cap is the mean radius capped there.

    Robust accuracy is a staircase with steps at the radii, so its values between them give the integral.
    """
    knots = np.unique([0.0, *np.minimum(radius(clf, x, y, p=p), cap), cap])
    levels = [robust_accuracy(clf, x, y, p=p, eps=middle) for middle in (knots[:-1] + knots[1:]) / 2]
    assert levels == sorted(levels, reverse=True)
    return _close(average(clf, x, y, p=p, cap=cap), float(np.diff(knots) @ levels), scale=cap)


def starts_at_the_accuracy(
    robust_accuracy: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float
) -> float:
    """Robust accuracy at eps = 0 is the accuracy of the class statistics."""
    accuracy = float(class_statistics(clf, x, y).mass.sum())
    return equal(robust_accuracy(clf, x, y, p=p, eps=0.0), accuracy, scale=1.0, tolerance=ROUNDING)


def equals_two_rows(
    candidate: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, p: float
) -> None:
    """A binary classifier and its two-row form -w/2, w/2 get the same bits."""
    half, bias = clf.weight / 2, clf.bias / 2
    two = LinearClassifier(np.stack([-half, half]), np.array([-bias, bias]))
    np.testing.assert_array_equal(candidate(two, x, y, p=p), candidate(clf, x, y, p=p))


def equals_robust_accuracy(
    fgs_accuracy: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, eps: float
) -> float:
    """For two classes FGS finds every mistake there is; not judged where rounding decides."""
    distance = np.abs(boundary_distances(clf, x, y, p=math.inf)[np.arange(len(y)), 1 - y] - eps)
    if (distance <= 1e-9 * (1 + size(clf, x, p=math.inf))).any():
        return 0.0
    truth = robust_accuracy(clf, x, y, p=math.inf, eps=eps)
    return equal(fgs_accuracy(clf, x, y, eps=eps), truth, scale=1.0, tolerance=0.0)


def is_an_attack(fgs_accuracy: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, eps: float) -> float:
    """FGS leaves at least the robust share correct, up to points on the boundary of the ball."""
    slack = eps * NUDGE + ROUNDING * size(clf, x, p=math.inf)
    return at_most(robust_accuracy(clf, x, y, p=math.inf, eps=eps + slack), fgs_accuracy(clf, x, y, eps=eps))


def sharpens_markov(bound: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, eps: float) -> float:
    """The bound is never above the paper's Theorem 3.1, the mean radius over eps."""
    stats = class_statistics(clf, x, y)
    paper = binary_mean_radius(clf, stats, p=math.inf) / eps
    return at_most(bound(clf, stats, eps=eps), paper, slack=ROUNDING * size(clf, x, p=math.inf) / eps)


def is_sharpest(jensen: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """The bound is at most the weight-free one and the paper's multi-class one."""
    stats, slack = class_statistics(clf, x, y), ROUNDING * size(clf, x, p=p)
    others = [weight_free_bound(stats, p=p), paper_multiclass_bound(clf, stats, p=p)]
    return at_most(jensen(clf, stats, p=p), min(others), slack=slack)


def rises(ceilings: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """A list of bounds of a classifier and its statistics, each at most the next up to rounding.

    Of equal entries two supports may take different ones, and so add them up in another order.
    """
    values = np.array(ceilings(clf, class_statistics(clf, x, y), p=p))
    return at_most(values[:-1], values[1:], slack=ROUNDING * values[1:])


def adds_up(decomposition: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """Contributions of a runner-up decomposition add up to the mean radius, its masses to the accuracy."""
    parts = decomposition(clf, x, y, p=p)
    accuracy = float(class_statistics(clf, x, y).mass.sum())
    equal(parts.mass.sum(), accuracy, scale=1.0, tolerance=ROUNDING)
    assert not np.isfinite(parts.contribution.diagonal()[parts.mass.diagonal() > 0]).any()
    return _close(float(parts.contribution.sum()), mean_radius(clf, x, y, p=p), scale=size(clf, x, p=p))


def matches_sample(formula: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """A formula in the class statistics equals the average of the radii over the sample."""
    stats = class_statistics(clf, x, y)
    return _close(formula(clf, stats, p=p), mean_radius(clf, x, y, p=p), scale=size(clf, x, p=p))


def limits_sample(bound: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """A bound of a classifier and its statistics is never below the mean radius of the sample."""
    stats = class_statistics(clf, x, y)
    return _at_most(mean_radius(clf, x, y, p=p), bound(clf, stats, p=p), scale=size(clf, x, p=p))


def limits_statistics(ceiling: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """A ceiling that sees only the statistics is never below the mean radius of the sample."""
    return limits_sample(lambda _, stats, *, p: ceiling(stats, p=p), clf, x, y, p=p)


def limits_robust_accuracy(
    bound: Callable,
    robust_accuracy: Callable,
    clf: Linear,
    x: np.ndarray,
    y: np.ndarray,
    *,
    p: float,
    eps: float,
) -> float:
    """A bound of P(rho > eps) holds on the sample; at a step of the staircase rounding may decide."""
    limit = bound(clf, class_statistics(clf, x, y), p=p, eps=eps)
    beyond = eps * (1 + NUDGE) + ROUNDING * size(clf, x, p=p)
    _at_most(limit, float(class_statistics(clf, x, y).mass.sum()), scale=1.0)
    return _at_most(robust_accuracy(clf, x, y, p=p, eps=beyond), limit, scale=1.0)


def is_approached(ceiling: Callable, clf: BinaryLinear, x: np.ndarray, y: np.ndarray, *, p: float) -> None:
    """The ceiling is the mean radius of this classifier, up to the nudge that keeps every input correct."""
    stats = class_statistics(clf, x, y)
    assert (stats.accuracy == 1).all(), "the witness must classify every input correctly"
    attained = mean_radius(clf, x, y, p=p)
    assert abs(ceiling(stats, p=p) - attained) <= 10 * NUDGE * attained


def interpolates(bounds: Callable, clf: Linear, x: np.ndarray, y: np.ndarray) -> float:
    """The l_inf radius of every point and their mean lie between the ends computed from the l_2 radius."""
    low, high = bounds(clf, radius(clf, x, y, p=2.0))
    exact = radius(clf, x, y, p=math.inf)
    slack = ROUNDING * size(clf, x, p=2.0)
    return min(at_most(low, exact, slack=slack), at_most(exact, high, slack=slack))


def solves_pair_program(ceiling: Callable, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """The ceiling is the largest mean of r >= 0 with r_i + r_j <= ||x_i - x_j||_p across labels."""
    return _close_to_program(ceiling(x, y, p=p), x, np.full(len(y), 1 / len(y)), labels=y, p=p)


def relaxes(ceiling: Callable, exact: Callable, x: np.ndarray, y: np.ndarray, *, p: float) -> float:
    """A cheaper ceiling is never below the exact one."""
    return _at_most(exact(x, y, p=p), ceiling(x, y, p=p), scale=float(np.abs(x).max()))


def solves_mean_program(bound: Callable, stats: ClassStatistics, *, p: float) -> float:
    """The bound is the largest sum_k mass_k r_k with r_k + r_j <= ||mu_k - mu_j||_p among classes in use.

    With one class in use there is no limit, with none nothing to sum.
    """
    used = np.flatnonzero(stats.mass > 0)
    if used.size < 2:
        return equal(bound(stats, p=p), math.inf if used.size else 0.0, scale=1.0, tolerance=0.0)
    return _close_to_program(bound(stats, p=p), stats.mean[used], stats.mass[used], labels=used, p=p)


def _close_to_program(
    value: float, points: np.ndarray, mass: np.ndarray, *, labels: np.ndarray, p: float
) -> float:
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] != labels[j]]
    sums = np.zeros((len(pairs), len(labels)))
    for row, pair in zip(sums, pairs, strict=True):
        row[list(pair)] = 1.0
    distance = norm(np.array([points[i] - points[j] for i, j in pairs]), p=p)
    unit = distance.max() or 1.0
    best = linprog(-mass, A_ub=sums, b_ub=distance / unit, method="highs")
    return equal(value, -best.fun * unit, scale=unit, tolerance=SOLVER)


def limits_every_classifier(
    ceiling: Callable, clf: Linear, x: np.ndarray, y: np.ndarray, *, p: float
) -> float:
    """A ceiling (x, y, correct) is never below the mean radius of the classifier with that correct set."""
    limit = ceiling(x, y, _decided(clf, x, y) > 0, p=p)
    return _at_most(mean_radius(clf, x, y, p=p), limit, scale=size(clf, x, p=p))


def scales_with_data(ceiling: Callable, x: np.ndarray, y: np.ndarray, *, p: float, factor: float) -> None:
    """Data times a power of two gives the ceiling times that power, bit by bit."""
    assert ceiling(factor * x, y, p=p) == factor * ceiling(x, y, p=p)
