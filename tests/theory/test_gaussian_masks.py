"""Gaussian classes under random masks against enumeration, binomial sums and sampling."""

import math
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from theory import symbolic_random
from theory.laws import linear_masks as laws
from theory.laws.strategies import attack_norms, independent_gaussian_problems, sparsities
from theory.linear import (
    GaussianClasses,
    MaskAverage,
    gaussian_mean_radius,
    masked_gaussian_mean_radius,
    masked_mean_radius,
)
from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput

SIGMAS = 5.0  # sampling tests fail by chance once in 2e6 draws; their seeds are fixed
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])
CLF = BinaryLinear(np.array([2.0, -0.75, 0.5, 0.0]), 0.25)
DATA = GaussianClasses(
    np.array([[-1.0, 0.5, 0.0, 9.0], [2.0, 1.0, -0.5, 9.0]]),
    np.diag([1.0, 0.3, 4.0, 0.0]),
    np.array([0.25, 0.75]),
)
HALVES = np.array([0.5, 0.5])


def one_sided(weight, mean, bias, variance=1.0):
    """One class, mean and variance shared by all features."""
    n = len(weight)
    data = GaussianClasses(np.full((2, n), mean), variance * np.eye(n), np.array([0.0, 1.0]))
    return BinaryLinear(np.array(weight), bias), data


# Found by search: with a longer contour step, twice the step shares the error of the step, 3e-4 of the value.
ALIASED = (
    BinaryLinear(np.array([1.802, 1.315, 0.3574, -1.208, -0.004454, 0.6565, -1.288, 0.3951])),
    GaussianClasses(
        np.array([[0.0] * 8, [1.075, 1.74, 2.96, -1.654, -1.091, 2.925, -4.348, 1.24]]),
        np.eye(8),
        np.array([0.0, 1.0]),
    ),
)


# Equal sides of the two classes are averaged once, and priors may miss 1 by rounding.
SYMMETRIC = (
    BinaryLinear(np.array([1.0])),
    GaussianClasses(np.zeros((2, 1)), np.eye(1), np.array([0.0, 1 - 3.6e-12])),
)
# At one node the contour's sums by both steps agree to 1e-5 of their common error.
COINCIDENT = (
    BinaryLinear(np.array([0.004, -1.29, 0.4, -0.935]), -1.8234134912490845),
    GaussianClasses(np.zeros((2, 4)), np.diag([7.0, 1.0, 7.0, 1.0]), np.array([1.0, 0.0])),
)


@settings(max_examples=30)
@given(independent_gaussian_problems(), sparsities(), attack_norms())
@example(ALIASED, 0.9, math.inf)
@example(COINCIDENT, 0.001, math.inf)
@example(SYMMETRIC, 0.001, math.inf)
@example(one_sided([1.0, 1e-3, 1e-6], 1.0, 0.0), 0.5, 2.0)
@example(one_sided([1.0, 0.1], -3.0, 8.0), 1 - 1e-12, 2.0)
@example(one_sided([1.0, 0.1], 1.0, -40.0), 0.3, math.inf)  # almost always wrong
def test_quadrature_agrees_with_all_masks(problem, alpha, p):
    clf, data = problem
    laws.averages_gaussian_masks(masked_gaussian_mean_radius, clf, data, alpha, p=p)


@NORMS
@pytest.mark.parametrize("alpha", [1e-12, 0.6, 1 - 1e-12])
def test_error_is_small_where_classes_overlap(alpha, p):
    found = masked_gaussian_mean_radius(CLF, DATA, np.array([alpha]), p=p)
    assert found.error[0] <= 1e-12 * found.value[0]


@pytest.mark.parametrize("alpha", [0.5, 1 - 1e-12])
def test_two_thousand_equal_weights_agree_with_the_binomial_sum(alpha):
    n, mean = 2_000, 0.05
    found = masked_gaussian_mean_radius(*one_sided([0.5] * n, mean, 0.1), np.array([alpha]), p=2.0)
    exact = 0.0
    one = GaussianClasses(np.array([[0.0], [1.0]]), np.eye(1), np.array([0.0, 1.0]))
    for count, chance in laws.binomial(n, alpha):
        if count and chance > 1e-20:
            distance = mean * math.sqrt(count) + 0.1 / (0.5 * math.sqrt(count))
            shifted = GaussianClasses(one.mean * distance, one.covariance, one.prior)
            exact += float(chance) * gaussian_mean_radius(BinaryLinear(np.ones(1)), shifted, p=2.0)
    assert abs(found.value[0] - exact) <= found.error[0]
    assert found.error[0] <= 1e-10 * exact


@NORMS
def test_quadrature_agrees_with_sampled_masks(p):
    """Each sampled mask counts with its own closed form: the sampling error is that of masks alone."""
    rng, n, alpha, draws = np.random.default_rng(2), 30, 0.7, 2000
    mean, variance = 0.3 * rng.normal(size=(2, n)), rng.uniform(0.2, 3.0, size=n)
    clf = BinaryLinear(mean[1] - mean[0] + 0.1 * rng.normal(size=n), 0.3)
    prior = np.array([0.4, 0.6])
    data = GaussianClasses(mean, np.diag(variance), prior)
    found = masked_gaussian_mean_radius(clf, data, np.array([alpha]), p=p)
    sample = np.zeros(draws)
    for k, masked in enumerate(clf.weight * (rng.random((draws, n)) >= alpha)):
        size = norm(masked[None], p=dual(p))[0]
        spread = math.sqrt(masked**2 @ variance)
        line = GaussianClasses((mean @ masked)[:, None], np.array([[spread**2]]), prior)
        sample[k] = gaussian_mean_radius(BinaryLinear(np.ones(1), clf.bias), line, p=2.0) / size
    assert abs(sample.mean() - found.value[0]) <= SIGMAS * sample.std() / math.sqrt(draws)
    assert found.error[0] <= 1e-7 * found.value[0]


@NORMS
def test_average_of_signed_distances_is_a_lower_bound_and_meets_it_for_far_classes(p):
    """Mistakes count negative there, 0 here; classes 40 standard deviations apart make none."""
    alphas = np.array([0.2, 0.9])
    for mean, tight in ((0.3, False), (20.0, True)):
        clf, data = one_sided([1.0, 0.5, 2.0], mean, 0.0)
        signed = masked_mean_radius(clf.weight, data.mean[1], alphas, p=p)
        found = masked_gaussian_mean_radius(clf, data, alphas, p=p)
        slack = signed.error + found.error + 1e-13 * found.value
        assert (signed.value <= found.value + slack).all()
        assert (abs(signed.value - found.value) <= slack).all() == tight


@NORMS
@pytest.mark.parametrize("alpha", [1e-300, 0.5, 1 - 2.0**-53])
def test_weights_that_span_90_orders_of_magnitude(alpha, p):
    laws.averages_gaussian_masks(
        masked_gaussian_mean_radius, *one_sided([1e45, -1.0, 1e-45], 0.7, 0.0), alpha, p=p
    )


def magnitudes(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of either sign, their logarithms spread evenly."""
    return st.builds(lambda e, sign: sign * 10.0**e, st.floats(low, high), st.sampled_from([-1.0, 1.0]))


@settings(max_examples=60)
@given(
    st.lists(magnitudes(-40, 0), min_size=1, max_size=3),
    st.tuples(magnitudes(-2, 4), magnitudes(-2, 4)),
    magnitudes(-2, 40),
    st.floats(-6, 2).map(lambda e: 10.0**e),
    sparsities(),
    attack_norms(),
)
@example([1.0], (200.0, 66.0), -1e18, 1.46e-5, 0.9, 2.0)
@example([1.0], (200.0, 66.0), -1e5, 1.46e-5, 0.9, 2.0)
@example([1.0], (2.8445670697, -14.3239111607), 203.58961799, 3.63896e-4, 0.9, 2.0)
@example([1.0], (0.896015185, 0.55565576), -1.92436972, 3.950124e-05, 0.9, math.inf)  # 218 deviations
@example([1.0880129590614344e-50], (-94.588, 94.588), -16.53166149925423, 2.5152780624920898e-05, 1e-10, 2.0)
def test_means_many_deviations_apart_are_within_the_error_or_said_to_be_out_of_reach(
    weight, means, bias, variance, alpha, p
):
    n, clf = len(weight), BinaryLinear(np.array(weight), bias)
    data = GaussianClasses(np.outer(means, np.ones(n)), variance * np.eye(n), HALVES)
    try:
        laws.averages_gaussian_masks(masked_gaussian_mean_radius, clf, data, alpha, p=p)
    except InvalidInput:
        reject()


def test_what_floats_cannot_hold_is_0_with_an_infinite_error():
    clf, wide = BinaryLinear(np.ones(1), -1e5), np.array([[200.0], [66.0]])
    found = masked_gaussian_mean_radius(
        clf, GaussianClasses(wide, np.array([[1.46e-5]]), HALVES), np.array([0.9]), p=2.0
    )
    assert (found.value, found.error) == (0.0, math.inf)


def test_ends_of_the_range_and_the_derivation():
    found = masked_gaussian_mean_radius(CLF, DATA, np.array([0.0, 1.0]), p=2.0)
    assert found.value[0] == gaussian_mean_radius(CLF, DATA, p=2.0)
    assert found.value[1] == found.error[1] == 0.0
    assert symbolic_random.prove_laplace_inversion()(2.5) == 2.5


PLAIN = GaussianClasses(np.array([[-1.0, -2], [1, 2]]), np.eye(2), np.array([0.5, 0.5]))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_units_of_the_weight_change_nothing(p):
    alphas = np.array([0.0, 0.5, 1.0])
    small = masked_gaussian_mean_radius(BinaryLinear(np.array([1.0, 0.5])), PLAIN, alphas, p=p)
    for exponent in (-1073, 1023):
        clf = BinaryLinear(np.ldexp([1.0, 0.5], exponent))
        found = masked_gaussian_mean_radius(clf, PLAIN, alphas, p=p)
        np.testing.assert_array_equal(found.value, small.value)
        np.testing.assert_array_equal(found.error, small.error)


def test_a_boundary_too_far_for_floats_is_refused():
    for weight, bias in ((1e-200, 1e200), (1.0, 1e300)):
        with pytest.raises(InvalidInput, match="bias is .*, too large beside weights"):
            masked_gaussian_mean_radius(
                BinaryLinear(np.array([weight, 0.0]), bias), PLAIN, np.array([0.5]), p=2.0
            )


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_error_without_masks_covers_a_mean_far_on_the_wrong_side(p):
    # E[T_+] = exp(-a^2 / 2 s^2) and less: a rounding of a counts (a / s)^2 times.
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weight, mean = rng.normal(size=5), 8 * rng.normal(size=(2, 5))
        data = GaussianClasses(mean, np.diag(rng.uniform(0.1, 3, size=5)), np.array([0.3, 0.7]))
        clf = BinaryLinear(weight, float(rng.normal()))
        found = masked_gaussian_mean_radius(clf, data, np.array([0.0]), p=p)
        assert abs(mp.mpf(float(found.value[0])) - exact_mean_radius(clf, data, p=p)) <= found.error[0]


def exact_mean_radius(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> Any:
    """The closed form in 40 digits."""
    with mp.workdps(40):
        weight = [mp.mpf(float(w)) for w in clf.weight]
        size = mp.fsum(map(abs, weight)) if p == math.inf else mp.sqrt(mp.fsum(w * w for w in weight))
        s = mp.sqrt(mp.fsum(w * w * v for w, v in zip(weight, data.covariance.diagonal(), strict=True)))
        total = mp.mpf(0)
        for sign, mean, prior in zip((-1, 1), data.mean, data.prior, strict=True):
            a = sign * (mp.fsum(w * float(m) for w, m in zip(weight, mean, strict=True)) + clf.bias)
            total += mp.mpf(float(prior)) * (a * mp.ncdf(a / s) + s * mp.npdf(a / s)) / size
        return total


def test_what_does_not_factorise_is_refused(unchecked):
    correlated = GaussianClasses(np.zeros((2, 2)), np.array([[1.0, 0.5], [0.5, 1.0]]), HALVES)
    constant = GaussianClasses(np.zeros((2, 2)), np.diag([1.0, 0.0]), HALVES)
    pair = BinaryLinear(np.array([1.0, 1.0]))
    for clf, data, word in (
        (pair, correlated, "diagonal"),
        (pair, constant, "diagonal"),
        (BinaryLinear(np.zeros(2)), correlated, "weight"),
        (CLF, correlated, "features"),
        (BinaryLinear(np.array([1.0, 1e-101])), GaussianClasses(correlated.mean, np.eye(2), HALVES), "spans"),
        (
            pair,
            GaussianClasses(np.zeros((2, 2)), np.diag([1e-309, 1e-309]), HALVES),
            "at most 1e-309, too small",
        ),
    ):
        with pytest.raises(InvalidInput, match=word):
            masked_gaussian_mean_radius(clf, data, np.array([0.5]), p=2.0)


def wrong_norm(clf, data, alphas, *, p):
    return masked_gaussian_mean_radius(clf, data, alphas, p=2.0 if p == math.inf else math.inf)


def density(clf, data, alphas, *, p):
    return masked_gaussian_mean_radius(clf, data, 1 - alphas, p=p)


def without_bias(clf, data, alphas, *, p):
    return masked_gaussian_mean_radius(BinaryLinear(clf.weight), data, alphas, p=p)


def swapped_classes(clf, data, alphas, *, p):
    swapped = GaussianClasses(data.mean, data.covariance, data.prior[::-1])
    return masked_gaussian_mean_radius(clf, swapped, alphas, p=p)


def no_error(clf, data, alphas, *, p):
    found = masked_gaussian_mean_radius(clf, data, alphas, p=p)
    return MaskAverage(found.value * (1 + 1e-11), found.error)


@NORMS
@pytest.mark.parametrize("broken", [wrong_norm, density, without_bias, swapped_classes, no_error])
def test_enumeration_law_rejects_wrong_formulas(broken, p):
    laws.averages_gaussian_masks(masked_gaussian_mean_radius, CLF, DATA, 0.3, p=p)
    with pytest.raises(AssertionError):
        laws.averages_gaussian_masks(broken, CLF, DATA, 0.3, p=p)
