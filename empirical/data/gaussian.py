"""Gaussian classes: data whose best possible accuracy is known."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray as Array

from empirical.datasets import Dataset
from theory.types import InvalidInput, finite_array

# Standard deviations from the outermost means to the sides of the box: of 10^9 features one in 10^6 such
# data sets has one outside.
_REACH = 8.0


def gaussian_classes(
    means: Float[Array, "c d"], *, sigma: float, n_train: int, n_test: int, seed: int
) -> Dataset:
    """Balanced classes x | k ~ N(means[k], sigma^2 I), drawn anew for training and test.

    Class sizes differ by at most one. The box reaches 8 sigma beyond the smallest and the largest mean: it
    caps distances and is no property of the classes. For two classes
    ``theory.linear.optimal_robust_accuracy`` is what no classifier exceeds, and attains with
    ``optimal_robust_classifier``.
    Raises: InvalidInput unless there are two classes or more, sigma > 0, and an example of each class.
    """
    means = finite_array("means", means, ndim=2)
    if len(means) < 2:
        raise InvalidInput(f"means has shape {means.shape}; a classifier needs two classes, one row each")
    if not 0 < sigma < math.inf:
        raise InvalidInput(f"sigma is {sigma}; a standard deviation is positive and finite")
    for name, count in (("n_train", n_train), ("n_test", n_test)):
        if count < len(means):
            raise InvalidInput(f"{name} is {count}; use at least one example of each of {len(means)} classes")
    rng = np.random.default_rng(seed)
    x_train, y_train = _sample(means, sigma, n_train, rng)
    x_test, y_test = _sample(means, sigma, n_test, rng)
    box = (float(means.min()) - _REACH * sigma, float(means.max()) + _REACH * sigma)
    return Dataset(f"gaussian-{len(means)}", x_train, y_train, x_test, y_test, len(means), box=box)


def _sample(
    means: Float[Array, "c d"], sigma: float, count: int, rng: np.random.Generator
) -> tuple[Float[Array, "n d"], Integer[Array, " n"]]:
    y = rng.permutation(np.arange(count) % len(means))
    return means[y] + sigma * rng.standard_normal((count, means.shape[1])), y
