"""Gaussian classes and the limits of magnitude pruning against sampling, statistics and derivations."""

import math
from functools import cache

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr, ndtri

from theory import symbolic_random
from theory.laws import averages
from theory.laws.strategies import attack_norms, gaussian_problems
from theory.linear import (
    GaussianClasses,
    binary_mean_radius,
    class_statistics,
    gaussian_mean_radius,
    gaussian_pruning_limit,
    gaussian_robust_accuracy,
    gaussian_statistics,
    hoelder_ceiling,
    laplace_pruning_limit,
    markov_bound,
    radius,
    robust_accuracy,
)
from theory.types import BinaryLinear

SIGMAS = 5.0  # sampling tests fail by chance once in 2e6 draws; their seeds are fixed
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.2]])
DATA = GaussianClasses(
    np.array([[-1.0, 0.5, 0.0], [2.0, 1.0, -0.5]]), FACTOR @ FACTOR.T, np.array([0.25, 0.75])
)
CLF = BinaryLinear(np.array([2.0, -0.75, 0.5]), 0.25)


def sample(data, m, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(m) < data.prior[1]).astype(np.int64)
    return data.mean[y] + rng.normal(size=(m, 3)) @ FACTOR.T, y


def agrees_with_sample(formula, *, p, m=40_000):
    """The law: closed form within sampling error of the mean radius of m draws."""
    x, y = sample(DATA, m)
    found = radius(CLF, x, y, p=p)
    assert abs(formula(CLF, DATA, p=p) - found.mean()) <= SIGMAS * found.std() / math.sqrt(m)


@NORMS
def test_mean_radius_agrees_with_sampling(p):
    agrees_with_sample(gaussian_mean_radius, p=p)


@NORMS
@pytest.mark.parametrize("eps", [0.0, 0.4])
def test_robust_accuracy_agrees_with_sampling(p, eps):
    x, y = sample(DATA, 40_000)
    found = gaussian_robust_accuracy(CLF, DATA, p=p, eps=eps)
    assert abs(found - robust_accuracy(CLF, x, y, p=p, eps=eps)) <= SIGMAS * 0.5 / math.sqrt(40_000)


def test_statistics_agree_with_sampling():
    x, y = sample(DATA, 40_000)
    exact, found = gaussian_statistics(CLF, DATA), class_statistics(CLF, x, y)
    np.testing.assert_allclose(found.accuracy, exact.accuracy, atol=SIGMAS * 0.5 / math.sqrt(9_000))
    np.testing.assert_allclose(found.mean, exact.mean, atol=SIGMAS * 2.5 / math.sqrt(6_000))


@given(gaussian_problems(), attack_norms())
def test_mean_radius_follows_from_the_statistics(problem, p):
    averages.equals_gaussian_mean_radius(binary_mean_radius, *problem, p=p)


@given(gaussian_problems(), attack_norms(), st.floats(0, 3))
def test_bounds_from_statistics_hold_for_the_closed_forms(problem, p, eps):
    averages.limits_gaussian_mean_radius(hoelder_ceiling, *problem, p=p)
    averages.limits_gaussian_robust_accuracy(markov_bound, *problem, p=p, eps=eps)


@NORMS
def test_mean_radius_integrates_robust_accuracy(p):
    total, _ = quad(lambda eps: gaussian_robust_accuracy(CLF, DATA, p=p, eps=eps), 0, math.inf)
    assert gaussian_mean_radius(CLF, DATA, p=p) == pytest.approx(total, rel=1e-7)  # quad stops at 1.5e-8


@pytest.mark.parametrize(("a", "s"), [(1.5, 2.0), (-1.5, 2.0), (-30.0, 1.0), (-3.0, 0.1), (40.0, 1.0)])
def test_mean_positive_part_is_the_derived_integral(a, s):
    data = GaussianClasses(np.array([[9.0], [a]]), np.array([[s * s]]), np.array([0.0, 1.0]))
    theorem = symbolic_random.prove_mean_positive_part()
    expected = float(
        theorem.formula.subs(dict(zip(theorem.variables, (a, s), strict=True))).evalf(30, maxn=2000)
    )
    found = gaussian_mean_radius(BinaryLinear(np.array([1.0])), data, p=2.0)
    assert found == pytest.approx(expected, rel=1e-11)  # 1 - |z| Mills(z) loses z^2 roundings


def test_far_classes_and_point_masses_are_numbers():
    for s, expected in ((0.0, 1e200), (1e-200, 1e200), (1.0, 1e200)):
        data = GaussianClasses(np.array([[-1e200], [1e200]]), np.array([[s]]), np.array([0.5, 0.5]))
        assert gaussian_mean_radius(BinaryLinear(np.array([1.0])), data, p=2.0) == pytest.approx(expected)
        wrong = BinaryLinear(np.array([-1.0]))
        assert gaussian_mean_radius(wrong, data, p=2.0) == 0.0
        assert gaussian_statistics(wrong, data).mass.sum() == 0.0


@NORMS
@pytest.mark.parametrize("exponent", [-1073, -800, 800, 1023])
def test_units_of_the_weight_change_nothing(exponent, p):
    data = GaussianClasses(np.array([[-1.0, -2], [1, 2]]), np.eye(2), np.array([0.5, 0.5]))
    weight = np.array([1.0, 0.5])
    here, there = BinaryLinear(weight), BinaryLinear(np.ldexp(weight, exponent))
    assert gaussian_mean_radius(there, data, p=p) == gaussian_mean_radius(here, data, p=p)
    assert gaussian_robust_accuracy(there, data, p=p, eps=0.1) == gaussian_robust_accuracy(
        here, data, p=p, eps=0.1
    )
    np.testing.assert_array_equal(gaussian_statistics(there, data).mean, gaussian_statistics(here, data).mean)
    far = BinaryLinear(np.array([1e-200, 0.0]), 1e200)
    assert gaussian_mean_radius(far, data, p=p) == math.inf
    never = GaussianClasses(data.mean, data.covariance, np.array([1.0, 0.0]))
    assert gaussian_mean_radius(far, never, p=p) == 0.0
    assert gaussian_robust_accuracy(far, data, p=p, eps=1.0) == 0.5
    assert gaussian_robust_accuracy(far, data, p=p, eps=math.inf) == 0.0
    assert gaussian_statistics(far, data).accuracy.tolist() == [0.0, 1.0]


def test_a_large_bias_beside_many_weights_is_a_finite_distance():
    """b / ||w||_1 is a float where b over the largest weight is not."""
    wide = GaussianClasses(np.zeros((2, 1000)), np.eye(1000), np.array([0.5, 0.5]))
    clf = BinaryLinear(np.full(1000, 1e-2), 1e308)
    assert gaussian_mean_radius(clf, wide, p=math.inf) == pytest.approx(5e306, rel=1e-12)


@NORMS
@pytest.mark.parametrize(
    ("kind", "limit"), [("gaussian", gaussian_pruning_limit), ("laplace", laplace_pruning_limit)]
)
def test_pruning_limit_is_the_derived_curve(kind, limit, p):
    sparsity, radius = symbolic_random.prove_pruning_limit(p, kind)
    for tau in (1e-6, 0.3, 1.7, 5.0):
        assert limit(np.array([sparsity(tau)]), p=p)[0] == pytest.approx(radius(tau), rel=1e-8)


@cache
def exact_pruning_limit(kind, alpha, *, p):
    """The derived curve at this very float, in 40 digits: tau from alpha, then the formula at tau."""
    sparsity, radius = symbolic_random.prove_pruning_limit(p, kind)
    with mpmath.workdps(60):
        kept = 1 - mpmath.mpf(alpha)
        tau = -mpmath.log(kept) if kind == "laplace" else mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(alpha))
        (variable,) = radius.variables
        assert abs(sparsity.formula.subs(variable, sp.Float(tau, 60)).evalf(40) - alpha) < 1e-35
        return float(radius.formula.subs(variable, sp.Float(tau, 60)).evalf(40))


def keeps_its_digits(limit, kind, *, p):
    """The law: float64 precision from alpha = 1e-300 to the largest float below 1."""
    for alpha in (0.0, 1e-300, 1e-12, 0.4, 0.999, 1 - 1e-12, 1 - 2.0**-53):
        found = limit(np.array([alpha]), p=p)[0]
        assert found == pytest.approx(exact_pruning_limit(kind, alpha, p=p), rel=1e-14), alpha


@NORMS
@pytest.mark.parametrize(
    ("kind", "limit"), [("gaussian", gaussian_pruning_limit), ("laplace", laplace_pruning_limit)]
)
def test_pruning_limit_keeps_its_digits_at_both_ends(kind, limit, p):
    keeps_its_digits(limit, kind, p=p)


def test_digit_law_rejects_the_formula_that_cancels():
    def plain(alphas, *, p):
        """(tau phi + Q) / phi as written, with Q = 1 - Phi(tau)."""
        tau = ndtri((1 + alphas) / 2)
        density = np.exp(-tau * tau / 2) / math.sqrt(2 * math.pi)
        kept = tau * density + 1 - ndtr(tau)
        return kept / density if p == math.inf else np.sqrt(2 * kept)

    for p in (2.0, math.inf):
        np.testing.assert_allclose(plain(np.array([0.4]), p=p), gaussian_pruning_limit(np.array([0.4]), p=p))
        with pytest.raises(AssertionError):
            keeps_its_digits(plain, "gaussian", p=p)


@NORMS
@pytest.mark.parametrize("limit", [gaussian_pruning_limit, laplace_pruning_limit])
def test_pruning_limit_agrees_with_a_pruned_classifier(limit, p):
    """n = 40,000 weights: the mean radius on the Gaussian classes they are optimal for."""
    n, rng = 40_000, np.random.default_rng(1)
    m = rng.normal(size=n) if limit is gaussian_pruning_limit else rng.laplace(size=n)
    alphas = np.array([0.0, 0.3, 0.8, 0.95])
    for alpha, expected in zip(alphas, limit(alphas, p=p), strict=True):
        kept = np.where(np.abs(m) >= np.quantile(np.abs(m), alpha), m, 0.0)
        # With S = I the distance law depends on w only through w.m and ||w||_2: one dimension suffices.
        a, s = float(kept @ m), math.sqrt(float(kept @ kept))
        data = GaussianClasses(np.array([[-a], [a]]), np.array([[s * s]]), np.array([0.5, 0.5]))
        found = gaussian_mean_radius(BinaryLinear(np.array([1.0])), data, p=2.0)
        found /= s * math.sqrt(n) if p == 2 else np.abs(kept).sum()
        assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("limit", [gaussian_pruning_limit, laplace_pruning_limit])
def test_pruning_lowers_l2_and_raises_linf(limit):
    alphas = np.array([0.0, 1e-12, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12])
    assert (np.diff(limit(alphas, p=2.0)) <= 0).all()
    assert (np.diff(limit(alphas, p=math.inf)) >= 0).all()
    assert limit(alphas, p=math.inf)[0] == pytest.approx(
        math.sqrt(math.pi / 2) if limit is gaussian_pruning_limit else 2
    )


@NORMS
def test_sampling_law_rejects_wrong_formulas(p):
    def swapped_priors(clf, data, *, p):
        return gaussian_mean_radius(clf, GaussianClasses(data.mean, data.covariance, data.prior[::-1]), p=p)

    def wrong_norm(clf, data, *, p):
        return gaussian_mean_radius(clf, data, p=2.0 if p == math.inf else math.inf)

    def point_masses(clf, data, *, p):
        return gaussian_mean_radius(clf, GaussianClasses(data.mean, 0 * data.covariance, data.prior), p=p)

    def uncorrelated(clf, data, *, p):
        diagonal = np.diag(data.covariance.diagonal())
        return gaussian_mean_radius(clf, GaussianClasses(data.mean, diagonal, data.prior), p=p)

    for broken in (swapped_priors, wrong_norm, point_masses, uncorrelated):
        with pytest.raises(AssertionError):
            agrees_with_sample(broken, p=p)


@pytest.mark.parametrize("exponent", [-1074, -1073, -540, 541, 1023])
def test_covariances_at_the_ends_of_the_floats(exponent):
    """Scaled by c, with means of 0, both radii are those of c = 1 times sqrt(c)."""
    matrix = np.eye(4) if exponent < -1000 else np.eye(4) / 4 + 3 / 4
    scaled = np.ldexp(matrix, exponent)
    clf, half = BinaryLinear(np.ones(4)), np.array([0.5, 0.5])

    def found(covariance):
        return gaussian_mean_radius(clf, GaussianClasses(np.zeros((2, 4)), covariance, half), p=2.0)

    even, odd = divmod(exponent, 2)
    expected = math.ldexp(found(matrix) * 2 ** (odd / 2), even)
    assert found(scaled) == pytest.approx(expected, rel=1e-14, abs=0)


def test_small_variances_count_beside_large_ones_of_small_weights():
    data = GaussianClasses(np.zeros((2, 2)), np.diag([1e300, 1e-300]), np.array([0.5, 0.5]))
    for weight, deviation in (([0.0, 1.0], 1e-150), ([1e-200, 1.0], 1e-50), ([1.0, 1e200], 1e-50)):
        found = gaussian_mean_radius(BinaryLinear(np.array(weight)), data, p=2.0)
        assert found == pytest.approx(deviation / math.sqrt(2 * math.pi), rel=1e-14, abs=0)


@pytest.mark.parametrize("p", [2.0])
def test_means_near_the_largest_float_that_cancel_leave_the_bias(p):
    # |w| / ||w||_2 = 1/8 and means of one size: every sum is exact, and 32 terms of one sign overflow.
    signs = np.r_[np.ones(32), -np.ones(32)]
    clf, half = BinaryLinear(np.ones(64), 1.0), np.array([0.5, 0.5])
    huge = GaussianClasses(np.stack([np.zeros(64), 2.0**1023 * signs]), np.eye(64), half)
    plain = GaussianClasses(np.zeros((2, 64)), np.eye(64), half)
    assert gaussian_mean_radius(clf, huge, p=p) == gaussian_mean_radius(clf, plain, p=p)
    assert gaussian_robust_accuracy(clf, huge, p=p, eps=0.5) == gaussian_robust_accuracy(
        clf, plain, p=p, eps=0.5
    )
    assert np.array_equal(gaussian_statistics(clf, huge).accuracy, gaussian_statistics(clf, plain).accuracy)
