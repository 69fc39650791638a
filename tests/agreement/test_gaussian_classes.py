"""Drawn Gaussian classes are as separable as the closed forms say: no more, no less."""

import math

import numpy as np
import pytest

from empirical.data.gaussian import gaussian_classes
from theory.linear import (
    GaussianClasses,
    gaussian_mean_radius,
    mean_radius,
    optimal_robust_accuracy,
    optimal_robust_classifier,
    robust_accuracy,
)
from theory.types import BinaryLinear, InvalidInput, LinearClassifier

MEANS = np.array([[-0.5, 0.25, 0.0, 1.0], [1.5, 0.0, 0.1, -0.5]])
SIGMA, TESTS = 0.8, 400_000
SIGMAS = 5.0  # sampling errors exceed it once in 2e6 draws; the seeds are fixed
CASES = pytest.mark.parametrize(("p", "eps"), [(2.0, 0.0), (2.0, 0.4), (math.inf, 0.0), (math.inf, 0.3)])


@pytest.fixture(scope="module")
def two():
    return gaussian_classes(MEANS, sigma=SIGMA, n_train=10, n_test=TESTS, seed=3)


def error(share: float) -> float:
    return SIGMAS * math.sqrt(share * (1 - share) / TESTS)


@CASES
def test_the_best_classifier_reaches_the_optimum_on_drawn_data(two, p, eps):
    best = optimal_robust_accuracy(MEANS, sigma=SIGMA, p=p, eps=eps)
    assert 0.7 < best < 0.95
    clf = optimal_robust_classifier(MEANS, p=p, eps=eps)
    assert abs(robust_accuracy(clf, two.x_test, two.y_test, p=p, eps=eps) - best) <= error(best)


def test_a_classifier_for_another_attack_does_not(two):
    best = optimal_robust_accuracy(MEANS, sigma=SIGMA, p=math.inf, eps=0.3)
    bayes = optimal_robust_classifier(MEANS, p=2.0, eps=0.0)
    found = robust_accuracy(bayes, two.x_test, two.y_test, p=math.inf, eps=0.3)
    assert found < best - error(best)


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize(
    "clf",
    [
        BinaryLinear(np.array([1.0, 0.5, 0.0, -2.0]), 0.25),
        optimal_robust_classifier(MEANS, p=2.0, eps=0.0),
        optimal_robust_classifier(MEANS, p=math.inf, eps=0.3),
    ],
    ids=["any", "Bayes", "robust in l_inf"],
)
def test_mean_radius_is_that_of_the_closed_form(two, clf, p):
    data = GaussianClasses(MEANS, SIGMA**2 * np.eye(4), np.array([0.5, 0.5]))
    truth = gaussian_mean_radius(clf, data, p=p)
    spread = SIGMA * 2 / math.sqrt(TESTS)
    assert abs(mean_radius(clf, two.x_test, two.y_test, p=p) - truth) <= SIGMAS * spread


def test_more_classes_are_balanced_and_around_their_means():
    means = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    data = gaussian_classes(means, sigma=1.0, n_train=6_001, n_test=3_000, seed=0)
    assert sorted(np.bincount(data.y_train)) == [2000, 2000, 2001]
    assert data.shape == (2,)
    assert data.classes == 3
    for k, mean in enumerate(means):
        drawn = data.x_test[data.y_test == k]
        assert np.abs(drawn.mean(0) - mean).max() < SIGMAS / math.sqrt(1000)
        assert np.abs(np.cov(drawn.T) - np.eye(2)).max() < SIGMAS * math.sqrt(2 / 1000)
    nearest = LinearClassifier(means, -(means**2).sum(1) / 2)
    share = (nearest.scores(data.x_test).argmax(1) == data.y_test).mean()
    bayes_of_two = optimal_robust_accuracy(means[:2], sigma=1.0, p=2.0, eps=0.0)
    assert 2 * bayes_of_two - 1 - 0.05 < share < bayes_of_two


def test_the_seed_decides():
    one, same, other = (gaussian_classes(MEANS, sigma=1.0, n_train=8, n_test=8, seed=s) for s in (0, 0, 1))
    assert np.array_equal(one.x_train, same.x_train)
    assert not np.array_equal(one.x_train, other.x_train)
    assert not np.array_equal(one.x_train, one.x_test)


@pytest.mark.parametrize(
    ("means", "changes", "message"),
    [
        (MEANS[:1], {}, "means has shape"),
        (MEANS, {"sigma": 0.0}, "sigma is 0"),
        (MEANS, {"sigma": math.nan}, "sigma is nan"),
        (MEANS, {"n_train": 1}, "n_train is 1"),
        (MEANS, {"n_test": 0}, "n_test is 0"),
        (MEANS * np.nan, {}, "means.* is nan"),
    ],
)
def test_bad_input_is_named(means, changes, message):
    given = {"sigma": 1.0, "n_train": 4, "n_test": 4, "seed": 0} | changes
    with pytest.raises(InvalidInput, match=message):
        gaussian_classes(means, **given)
