"""The most robust classifier of two Gaussian classes: attained, never exceeded, and sparse in l_inf."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from theory.laws.averages import limits_every_classifier
from theory.laws.strategies import arrays, attack_norms
from theory.linear import (
    GaussianClasses,
    gaussian_robust_accuracy,
    optimal_robust_accuracy,
    optimal_robust_classifier,
    radius,
)
from theory.types import BinaryLinear, InvalidInput

MEAN = np.array([[0.0, 0.0, 0.0], [2.0, -0.5, 0.25]])
# Sums of a few products in float64, and Phi of them.
ROUNDING = 1e-12


def value_of(clf: BinaryLinear, mean: np.ndarray, *, sigma: float, p: float, eps: float) -> float:
    data = GaussianClasses(mean, sigma**2 * np.eye(mean.shape[1]), np.array([0.5, 0.5]))
    return gaussian_robust_accuracy(clf, data, p=p, eps=eps)


@given(mean=arrays((2, 4)), sigma=st.sampled_from([0.3, 1.0, 2.0]), p=attack_norms(), eps=st.floats(0, 3))
def test_the_classifier_attains_the_optimum(mean, sigma, p, eps):
    best = optimal_robust_accuracy(mean, sigma=sigma, p=p, eps=eps)
    try:
        clf = optimal_robust_classifier(mean, p=p, eps=eps)
    except InvalidInput:
        assert best == 0.5
        return
    assert value_of(clf, mean, sigma=sigma, p=p, eps=eps) == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_the_law_rejects_the_optimum_of_the_other_norm(p):
    """Bayes' classifier is not the most robust one in l_inf, and l_2 has more accuracy to give."""
    best = optimal_robust_classifier(MEAN, p=p, eps=0.3)
    limits_every_classifier(optimal_robust_accuracy, best, MEAN, sigma=1.0, p=p, eps=0.3)

    def other(mean, *, sigma, p, eps):
        half = (mean[1] - mean[0]) / 2
        gap = half @ half - eps * (np.abs(half).sum() if p == math.inf else 2 * math.hypot(*half))
        return float(ndtr(gap / math.hypot(*half) / sigma))

    with pytest.raises(AssertionError, match="exceeds"):
        limits_every_classifier(other, best, MEAN, sigma=1.0, p=p, eps=0.3)


def test_known_values():
    assert optimal_robust_accuracy(MEAN, sigma=0.5, p=2.0, eps=0.0) == pytest.approx(
        ndtr(math.hypot(1.0, 0.25, 0.125) / 0.5), abs=ROUNDING
    )
    assert optimal_robust_accuracy(MEAN, sigma=0.5, p=math.inf, eps=0.2) == pytest.approx(
        ndtr(math.hypot(0.8, 0.05) / 0.5), abs=ROUNDING
    )
    assert np.array_equal(optimal_robust_classifier(MEAN, p=math.inf, eps=0.25).weight, [0.75, 0.0, 0.0])


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-170, 1.0, 1e155, 1e200, 5e307])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_squares_of_means_neither_under_nor_overflow(size, p):
    mean = np.array([[0.0, 0.0], [size, size]])
    assert optimal_robust_accuracy(mean, sigma=size, p=2.0, eps=0.0) == pytest.approx(ndtr(math.sqrt(0.5)))
    for eps in (0.0, 0.25):
        mean = np.array([[1.0, 0.5, 3.0, 3.0, 3.0, -3.0], [3.0, 0.25, 3.0, 2.0, 3.0, -2.5]]) * size
        clf = optimal_robust_classifier(mean, p=p, eps=eps * size)
        plain = optimal_robust_classifier(mean / size, p=p, eps=eps)
        here, there = radius(clf, mean, np.arange(2), p=2.0)  # half-way
        assert here / there == pytest.approx(1.0, rel=ROUNDING)
        assert here / size == pytest.approx(radius(plain, mean / size, np.arange(2), p=2.0)[0], rel=ROUNDING)


def test_a_coordinate_in_which_the_classes_agree_does_not_count_however_large():
    clf = optimal_robust_classifier(np.array([[1e300, 1e-200], [1e300, 3e-200]]), p=2.0, eps=0.0)
    assert clf.weight[0] == 0
    assert -clf.bias / clf.weight[1] / 2e-200 == pytest.approx(1.0, rel=ROUNDING)


def test_means_of_short_numbers_are_summed_as_the_numbers_that_they_are():
    mean = np.array([[0.1, 1e8, 0.3], [0.7, 1e8 + 8, 0.9]], dtype=np.float32)
    short, exact = (optimal_robust_classifier(m, p=2.0, eps=0.1) for m in (mean, mean.astype(np.float64)))
    assert short.bias == exact.bias


def test_bad_input_is_named():
    with pytest.raises(InvalidInput, match="eps is 1.0; it reaches half-way"):
        optimal_robust_classifier(MEAN, p=math.inf, eps=1.0)
    with pytest.raises(InvalidInput, match="eps is -1"):
        optimal_robust_accuracy(MEAN, sigma=1.0, p=2.0, eps=-1.0)
    with pytest.raises(InvalidInput, match="sigma is 0"):
        optimal_robust_accuracy(MEAN, sigma=0.0, p=2.0, eps=0.1)
    with pytest.raises(InvalidInput, match="p is 1"):
        optimal_robust_accuracy(MEAN, sigma=1.0, p=1.0, eps=0.1)


@pytest.mark.usefixtures("unchecked")
def test_three_classes_are_refused():
    with pytest.raises(InvalidInput, match=r"mean has shape \(3, 2\); pass \(2, n\)"):
        optimal_robust_accuracy(np.zeros((3, 2)), sigma=1.0, p=2.0, eps=0.1)


def test_in_one_dimension_both_norms_agree_next_to_the_mean():
    """The budget leaves a few units in the last place of half the distance: both give its exact rest."""
    sigma = 2.0**-51
    mean, eps = np.array([[-3.0], [3.0]]), 3 - sigma
    two, largest = (optimal_robust_accuracy(mean, sigma=sigma, p=p, eps=eps) for p in (2.0, math.inf))
    assert two == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "sigma", "eps", "expected"),
    [
        ([[-1.7e308, -1.7e308], [1.7e308, 1.7e308]], 1.7e308, 0.0, ndtr(math.sqrt(2))),
        ([[-1.7e308, -1.7e308], [1.7e308, 1.7e308]], 1.7e308, 1.7e308, ndtr(math.sqrt(2) - 1)),
        ([[0.0, 0.0], [5e-324, 0.0]], 5e-324, 0.0, ndtr(0.5)),
        ([[1e308, 0.0], [1e308, 3e-323]], 5e-324, 5e-324, ndtr(2.0)),
        ([[-1e308], [1e308]], 1e-300, 1.0, 1.0),
    ],
)
def test_the_ends_of_the_floats(mean, sigma, eps, expected):
    found = optimal_robust_accuracy(np.array(mean), sigma=sigma, p=2.0, eps=eps)
    assert found == pytest.approx(expected, rel=ROUNDING)
    clf = optimal_robust_classifier(np.array(mean), p=2.0, eps=eps)
    assert ((clf.weight > 0) == (np.array(mean[1]) > mean[0])).all()
