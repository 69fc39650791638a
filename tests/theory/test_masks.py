"""Averages over Bernoulli masks against enumeration of all masks, sampling, and exact arithmetic."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from theory import symbolic_random
from theory.laws import averages
from theory.laws import linear_masks as laws
from theory.laws.strategies import arrays, attack_norms, sparsities
from theory.linear import (
    MaskAverage,
    gaussian_pruning_limit,
    laplace_pruning_limit,
    masked_mean_radius,
)
from theory.norms import dual, norm

SIGMAS = 5.0  # sampling tests fail by chance once in 2e6 draws; their seeds are fixed
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])


@st.composite
def problems(draw, *, most=6):
    n = draw(st.integers(1, most))
    exponents = draw(st.sampled_from([[0], [0, -3, 3], [-150, 0, 150], [-300, 300], [-12, 0]]))
    scales = 10.0 ** np.array(draw(st.lists(st.sampled_from(exponents), min_size=n, max_size=n)))
    weight, gain = draw(arrays((n,))) * scales, draw(arrays((n,)))
    assume(weight.any())
    return weight, gain


@given(problems(), sparsities(), attack_norms())
@example((np.array([1.0]), np.array([1.0])), 0.5, 2.0)
@example((np.array([1.0, 1.0, 1.0]), np.array([1.0, -1.0, 0.0])), 0.5, math.inf)  # the terms cancel
@example((np.array([1e-150, 1e150, 0.0]), np.array([1.0, 2.0, 9.0])), 1e-12, 2.0)
@example((np.array([1e-150, 1e150]), np.array([1.0, 2.0])), 1 - 1e-12, math.inf)
def test_quadrature_agrees_with_all_masks(problem, alpha, p):
    weight, gain = problem
    laws.averages_all_masks(masked_mean_radius, weight, gain, alpha, p=p)


@NORMS
@pytest.mark.parametrize("spread", [0, 6, 150, 300])
def test_quadrature_agrees_with_all_masks_of_12_weights(p, spread):
    """Signs, ties and zeros among weights that span up to 600 orders of magnitude."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=12) * 10.0 ** rng.integers(-spread, spread + 1, size=12)
    weight[3:6], weight[6] = weight[2], 0.0
    for alpha in (1e-12, 0.6, 1 - 1e-12):
        laws.averages_all_masks(masked_mean_radius, weight, rng.normal(size=12), alpha, p=p)


def test_quadrature_agrees_with_all_masks_of_14_weights():
    rng = np.random.default_rng(6)
    laws.averages_all_masks(masked_mean_radius, rng.normal(size=14), rng.normal(size=14), 0.7, p=2.0)


# Found by search: equal factors near 1 repeat one rounding 10,000 times, unless log1p takes them.
REPEATED = ((10_000, 0), (0.7, 1.0), (1.0, 1.0))
NEARLY_CANCEL = ((25, 10_000), (1.3, -0.7), (-210.0, -1.0))
WIDE = ((10_000, 2), (1e-150, 1e150), (1.0, 1.0))  # 600 orders of magnitude for p = 2, seconds each


@NORMS
@pytest.mark.parametrize(
    ("sizes", "alpha"),
    [(sizes, alpha) for sizes in (REPEATED, NEARLY_CANCEL) for alpha in (1e-300, 1e-12, 0.3, 1 - 1e-12)]
    + [(REPEATED, 1 - 2.0**-53), (WIDE, 0.3)],
)
def test_ten_thousand_weights_of_two_sizes_agree_with_the_double_binomial_sum(sizes, alpha, p):
    counts, weights, gains = sizes
    laws.averages_two_sizes(masked_mean_radius, counts, weights, gains, alpha, p=p)


@NORMS
@pytest.mark.parametrize("alpha", [1e-12, 0.95, 1 - 1e-12])
def test_a_thousand_weights_of_any_range_agree_with_the_double_binomial_sum(alpha, p):
    laws.averages_two_sizes(masked_mean_radius, (1_000, 6), (1e-150, 1e150), (-2.0, 1.0), alpha, p=p)


@NORMS
def test_binomial_law_rejects_too_small_an_error_and_a_drifting_product(p):
    def confident(w, g, a, *, p):
        found = masked_mean_radius(w, g, a, p=p)
        return MaskAverage(found.value * (1 + 1e-12), found.error)

    def no_error(w, g, a, *, p):
        found = masked_mean_radius(w, g, a, p=p)
        return MaskAverage(found.value, 0 * found.error)

    def vague(w, g, a, *, p):
        found = masked_mean_radius(w, g, a, p=p)
        return MaskAverage(found.value, 1e3 * found.error)

    for broken in (confident, no_error, vague):
        with pytest.raises(AssertionError):
            laws.averages_two_sizes(broken, *REPEATED, 0.3, p=p)


@NORMS
def test_the_largest_floats_neither_overflow_nor_lose_digits(p):
    weight, gain = np.array([1e308, -1.7e308, 5e307]), np.array([1.0, 2.0, -1.0])
    alphas = np.array([0.0, 0.4])
    found = masked_mean_radius(weight, gain, alphas, p=p)
    small = masked_mean_radius(weight / 2.0**1020, gain, alphas, p=p)
    np.testing.assert_allclose(found.value, small.value, rtol=1e-15)
    large = masked_mean_radius(weight, np.ldexp(gain, 1000), alphas, p=p)
    np.testing.assert_array_equal(large.value, np.ldexp(found.value, 1000))


def test_an_average_below_the_smallest_float_has_an_error():
    found = masked_mean_radius(np.ones(3), np.full(3, 5e-324), np.array([0.0, 0.5, 1.0]), p=math.inf)
    truth = 5e-324 * np.array([1.0, 1 - 0.5**3, 0.0])  # rounded: no float lies closer
    assert (found.error[:2] >= 5e-324).all()
    assert (np.abs(found.value - truth) <= found.error).all()
    assert found.error[2] == 0.0


def test_an_average_beyond_the_largest_float_is_infinite_and_so_is_its_error():
    found = masked_mean_radius(np.ones(9), np.full(9, 1.7e308), np.array([0.0, 0.5, 1.0]), p=2.0)
    assert found.value.tolist() == [math.inf, math.inf, 0.0]
    assert found.error.tolist() == [math.inf, math.inf, 0.0]


def test_quadrature_agrees_with_rational_arithmetic():
    weight, gain, alpha = [3, -1, 2, 2, -5], [1, 2, -1, 4, 1], Fraction(1, 4)
    total = Fraction(0)
    for mask in product([0, 1], repeat=5):
        if any(mask):
            chance = math.prod(1 - alpha if m else alpha for m in mask)
            dot = sum(m * w * g for m, w, g in zip(mask, weight, gain, strict=True))
            total += chance * dot / sum(m * abs(w) for m, w in zip(mask, weight, strict=True))
    found = masked_mean_radius(np.array(weight, float), np.array(gain, float), np.array([0.25]), p=math.inf)
    assert found.value[0] == pytest.approx(float(total), rel=1e-14)


@NORMS
def test_the_sum_over_masks_is_the_derived_integral(p):
    power = 1 if p == math.inf else 2
    weight, gain, alpha = np.array([2.0, -0.5]), np.array([1.0, 3.0]), 0.3
    theorem = symbolic_random.prove_mask_integral(p, 2)
    expected = theorem(*(gain * weight), *(np.abs(weight) ** power), alpha)
    found = masked_mean_radius(weight, gain, np.array([alpha]), p=p)
    assert found.value[0] == pytest.approx(expected, rel=1e-14)


@NORMS
def test_no_mask_at_alpha_0_and_no_weight_at_alpha_1(p):
    weight, gain = np.array([3.0, -4.0, 0.0]), np.array([1.0, -2.0, 7.0])
    found = masked_mean_radius(weight, gain, np.array([0.0, 1.0, 1e-15]), p=p)
    assert found.value[0] == pytest.approx(11 / (5 if p == 2 else 7), rel=1e-15)
    assert found.value[1] == 0.0
    assert found.value[2] == pytest.approx(found.value[0], rel=1e-13)


@NORMS
def test_quadrature_agrees_with_sampled_masks(p):
    rng = np.random.default_rng(11)
    weight, alphas = rng.normal(size=200), np.array([0.2, 0.9, 0.98])
    gain = weight + 0.5 * rng.normal(size=200)
    found = masked_mean_radius(weight, gain, alphas, p=p)
    for alpha, value in zip(alphas, found.value, strict=True):
        masked = weight * (rng.random((4000, 200)) >= alpha)
        size = norm(masked, p=dual(p))
        sample = np.divide(masked @ gain, size, out=np.zeros(4000), where=size > 0)
        assert abs(sample.mean() - value) <= SIGMAS * sample.std() / math.sqrt(4000)


@NORMS
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_many_weights_of_any_range_and_extreme_sparsity(p, spread):
    """Equal gains bound the answer: for p = inf it is then P(mask not empty) exactly."""
    n = 20_000 if spread == 1 else 2_000
    weight = 10.0 ** np.linspace(-spread / 2, spread / 2, n)
    alphas = np.array([1e-12, 0.5, 1 - 1e-12])
    found = masked_mean_radius(weight, np.ones(n), alphas, p=p)
    assert (found.error <= 1e-12 * found.value).all()
    nonempty = -np.expm1(n * np.log(alphas))
    if p == math.inf:
        np.testing.assert_allclose(found.value, nonempty, rtol=1e-12)
    else:
        assert found.value[2] == pytest.approx(nonempty[2], rel=n * 1e-12)  # one weight survives, if any
        full = weight.sum() / norm(weight[None], p=2.0)[0]
        assert found.value[0] == pytest.approx(full, rel=n * 1e-12)


def follows_the_random_law(average, weight, alphas):
    """Random masks leave R_inf flat and shrink R_2 like sqrt(1 - alpha), to O(1 / (number kept))."""
    kept = weight.size * (1 - alphas)
    flat = average(weight, weight, alphas, p=math.inf)
    falling = average(weight, weight, alphas, p=2.0) / np.sqrt(1 - alphas)
    whole = [weight @ weight / norm(weight[None], p=dual(p))[0] for p in (math.inf, 2.0)]
    for curve, start in zip((flat, falling), whole, strict=True):
        assert (np.abs(curve / start - 1) <= 2 * alphas / kept + 1e-12).all(), curve / start


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_random_masks_keep_linf_and_lose_l2_like_the_root_of_what_is_kept(draw):
    """What random pruning does to the classifier w = mean, and magnitude pruning does not.

    Magnitude pruning follows the limits of ``gaussian_pruning_limit``: more R_inf, and less loss of R_2.
    """
    limit = gaussian_pruning_limit if draw == "normal" else laplace_pruning_limit
    n, alphas = 10_000, np.array([0.0, 1e-12, 0.5, 0.9, 0.98])
    weight = getattr(np.random.default_rng(3), draw)(size=n)

    def random(weight, gain, alphas, *, p):
        return masked_mean_radius(weight, gain, alphas, p=p).value

    def magnitude(weight, gain, alphas, *, p):
        order, curve = np.argsort(np.abs(weight)), []
        for alpha in alphas:
            kept = np.zeros(n)
            kept[order[round(alpha * n) :]] = weight[order[round(alpha * n) :]]
            curve.append(kept @ gain / norm(kept[None], p=dual(p))[0])
        return np.array(curve)

    follows_the_random_law(random, weight, alphas)
    with pytest.raises(AssertionError):
        follows_the_random_law(magnitude, weight, alphas)
    for p, unit in ((math.inf, 1.0), (2.0, math.sqrt(n))):
        np.testing.assert_allclose(
            magnitude(weight, weight, alphas, p=p) / unit, limit(alphas, p=p), rtol=0.08
        )
        assert (limit(alphas[2:], p=p) * unit > 1.1 * random(weight, weight, alphas[2:], p=p)).all()


@given(problems(most=4), sparsities(edges=False), attack_norms())
def test_average_is_at_most_the_expected_mean_radius(problem, alpha, p):
    weight, gain = problem
    averages.is_below_expected_radius(masked_mean_radius, weight, gain, alpha, p=p)


@NORMS
def test_enumeration_law_rejects_wrong_formulas(p):
    weight, gain = np.array([3.0, -1.0, 0.5]), np.array([1.0, -2.0, 4.0])

    def wrong_norm(w, g, a, *, p):
        return masked_mean_radius(w, g, a, p=2.0 if p == math.inf else math.inf)

    def density(w, g, a, *, p):
        return masked_mean_radius(w, g, 1 - a, p=p)

    def ratio_of_means(w, g, a, *, p):
        found = masked_mean_radius(w, g, a, p=p)
        size = math.sqrt((1 - a[0]) * w @ w) if p == 2 else (1 - a[0]) * np.abs(w).sum()
        return type(found)((1 - a) * (g @ w) / size, found.error)

    for broken in (wrong_norm, density, ratio_of_means):
        with pytest.raises(AssertionError):
            laws.averages_all_masks(broken, weight, gain, 0.3, p=p)
