"""Averages over Bernoulli masks against enumeration of all masks, sampling, and exact arithmetic."""

import math
import time
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given

from theory import symbolic_random
from theory.laws import averages
from theory.laws.strategies import attack_norms, sparsities, weights_and_gains
from theory.linear.masks import masked_mean_radius
from theory.norms import dual, norm

SIGMAS = 5.0  # sampling tests fail by chance once in 2e6 draws; their seeds are fixed
NORMS = pytest.mark.parametrize("p", [2.0, math.inf])


@given(weights_and_gains(), sparsities(), attack_norms())
@example((np.array([1.0]), np.array([1.0])), 0.5, 2.0)
@example((np.array([1.0, 1.0, 1.0]), np.array([1.0, -1.0, 0.0])), 0.5, math.inf)  # the terms cancel
@example((np.array([1e-150, 1e150, 0.0]), np.array([1.0, 2.0, 9.0])), 1e-12, 2.0)
@example((np.array([1e-150, 1e150]), np.array([1.0, 2.0])), 1 - 1e-12, math.inf)
def test_quadrature_agrees_with_all_masks(problem, alpha, p):
    weight, gain = problem
    averages.agrees_with_enumeration(masked_mean_radius, weight, gain, alpha, p=p)


@NORMS
def test_quadrature_agrees_with_all_4096_masks_of_12_weights(p):
    rng = np.random.default_rng(5)
    weight, gain = rng.normal(size=12) * 10.0 ** rng.integers(-6, 7, size=12), rng.normal(size=12)
    for alpha in (1e-12, 0.1, 0.6, 0.95, 1 - 1e-12):
        averages.agrees_with_enumeration(masked_mean_radius, weight, gain, alpha, p=p)


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


def test_equal_weights_agree_with_the_binomial_sum():
    n, alpha = 500, 0.9
    chance = [math.comb(n, k) * (1 - alpha) ** k * alpha ** (n - k) for k in range(1, n + 1)]
    expected = sum(c * math.sqrt(k) for k, c in enumerate(chance, start=1))
    found = masked_mean_radius(np.full(n, 2.0), np.ones(n), np.array([alpha]), p=2.0)
    assert found.value[0] == pytest.approx(expected, rel=1e-12)


def test_random_masks_keep_linf_and_lose_l2_like_the_root_of_what_is_kept():
    """What random pruning does to the classifier w = mean; magnitude pruning raises the l_inf radius."""
    weight, alphas = np.random.default_rng(3).normal(size=784), np.array([0.0, 0.5, 0.9])
    flat = masked_mean_radius(weight, weight, alphas, p=math.inf).value
    np.testing.assert_allclose(flat, flat[0], rtol=0.01)
    falling = masked_mean_radius(weight, weight, alphas, p=2.0).value
    np.testing.assert_allclose(falling, falling[0] * np.sqrt(1 - alphas), rtol=0.01)
    largest = np.abs(weight) >= np.quantile(np.abs(weight), 0.9)
    magnitude = masked_mean_radius(weight * largest, weight, np.array([0.0]), p=math.inf).value[0]
    assert magnitude > 1.5 * flat[2]


@given(weights_and_gains(4), sparsities(edges=False), attack_norms())
def test_average_is_at_most_the_expected_mean_radius(problem, alpha, p):
    weight, gain = problem
    averages.is_below_expected_radius(masked_mean_radius, weight, gain, alpha, p=p)


def test_a_curve_of_200_sparsities_is_fast():
    rng = np.random.default_rng(0)
    weight, gain, alphas = rng.normal(size=784), rng.normal(size=784), np.linspace(0, 1, 200)
    start = time.process_time()
    for p in (2.0, math.inf):
        masked_mean_radius(weight, gain, alphas, p=p)
    assert time.process_time() - start < 2.0  # 0.3 s on an idle core; slack for a busy machine


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
            averages.agrees_with_enumeration(broken, weight, gain, 0.3, p=p)
