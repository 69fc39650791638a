"""Laws of averages over random masks of a linear classifier and over Gaussian classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from theory.laws import linear
from theory.laws.measure import at_most, equal
from theory.linear import (
    GaussianClasses,
    gaussian_mean_radius,
    gaussian_robust_accuracy,
    gaussian_statistics,
    mean_radius,
)
from theory.norms import dual, norm
from theory.types import BinaryLinear

# Enumeration adds 2^n products of n probabilities in float64.
ENUMERATION = 1e-13
# Two closed forms by different special functions; a conditional mean far in a tail loses digits.
CLOSED_FORMS = 1e-9
TAIL = 1e-11


def is_below_expected_radius(
    candidate: Callable, weight: np.ndarray, gain: np.ndarray, alpha: float, *, p: float
) -> float:
    """One input per class, at -gain and +gain: mistakes count negative in the average, 0 in the radius."""
    total = scale = 0.0
    x, y = np.stack([-gain, gain]), np.array([0, 1])
    for mask in product([0.0, 1.0], repeat=weight.size):
        masked = weight * mask
        if masked.any():
            kept = int(sum(mask))
            chance = (1 - alpha) ** kept * alpha ** (weight.size - kept)
            total += chance * mean_radius(BinaryLinear(masked), x, y, p=p)
            scale += chance * float(np.abs(masked) / norm(masked, p=dual(p)) @ np.abs(gain))
    average = candidate(weight, gain, np.array([alpha]), p=p).value[0]
    return at_most(average, total, slack=ENUMERATION * scale)


def _size(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> float:
    return linear.size(clf, np.abs(data.mean) + np.sqrt(data.covariance.diagonal()), p=p)


def equals_gaussian_mean_radius(
    formula: Callable, clf: BinaryLinear, data: GaussianClasses, *, p: float
) -> float:
    """A formula in the Gaussian class statistics equals the integral of the density of the distance."""
    found = formula(clf, gaussian_statistics(clf, data), p=p)
    truth = gaussian_mean_radius(clf, data, p=p)
    scale = abs(truth) + TAIL / CLOSED_FORMS * _size(clf, data, p=p)
    return equal(found, truth, scale=scale, tolerance=CLOSED_FORMS)


def limits_gaussian_mean_radius(
    ceiling: Callable, clf: BinaryLinear, data: GaussianClasses, *, p: float
) -> float:
    """A ceiling that sees only the statistics is never below the closed-form mean radius."""
    slack = TAIL * _size(clf, data, p=p)
    return at_most(
        gaussian_mean_radius(clf, data, p=p), ceiling(gaussian_statistics(clf, data), p=p), slack=slack
    )


def limits_gaussian_robust_accuracy(
    bound: Callable, clf: BinaryLinear, data: GaussianClasses, *, p: float, eps: float
) -> float:
    """A bound of P(rho > eps) holds for the closed form."""
    limit = bound(clf, gaussian_statistics(clf, data), p=p, eps=eps)
    beyond = eps + TAIL * _size(clf, data, p=p)
    truth = gaussian_robust_accuracy(clf, data, p=p, eps=beyond)
    return at_most(truth, limit, slack=limit * CLOSED_FORMS + 1e-12)


def limits_every_classifier(
    optimum: Callable, clf: BinaryLinear, mean: np.ndarray, *, sigma: float, p: float, eps: float
) -> float:
    """No linear classifier of two isotropic Gaussian classes is more robust than the optimum."""
    data = GaussianClasses(mean, sigma**2 * np.eye(mean.shape[1]), np.array([0.5, 0.5]))
    truth = gaussian_robust_accuracy(clf, data, p=p, eps=eps)
    return at_most(truth, optimum(mean, sigma=sigma, p=p, eps=eps), slack=1e-12)
