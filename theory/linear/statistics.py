"""What the bounds on linear classifiers need to know about the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.linear.exact import boundary_distances, mean_of
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, finite_array

PRIOR_SLACK = 1e-9  # priors given as decimals sum to 1 only up to rounding


@dataclass(frozen=True)
class ClassStatistics:
    """Per class: prior pi_k (c,), accuracy t_k (c,) and mean mu_k (c, n) of its correctly classified inputs.

    The mean of a class with no correct input is 0 and never contributes. The means belong to the classifier
    that decided what is correct; they are those of all linear classifiers at once only where t_k = 1.
    Raises: InvalidInput for shapes that disagree, NaN, fewer than two classes, entries outside [0, 1], or
    priors that do not sum to 1.
    """

    prior: Float[Array, " c"]
    accuracy: Float[Array, " c"]
    mean: Float[Array, "c n"]

    def __post_init__(self) -> None:
        prior = finite_array("prior", self.prior, ndim=1)
        accuracy = finite_array("accuracy", self.accuracy, ndim=1)
        mean = finite_array("mean", self.mean, ndim=2)
        if prior.size < 2:
            raise InvalidInput("prior has 1 entry; a classifier needs at least two classes")
        if accuracy.shape != prior.shape or mean.shape[0] != prior.size:
            raise InvalidInput(
                f"accuracy has shape {accuracy.shape} and mean {mean.shape}; prior has {prior.size} classes, "
                f"so pass ({prior.size},) and ({prior.size}, n)"
            )
        for name, value in (("prior", prior), ("accuracy", accuracy)):
            if (value < 0).any() or (value > 1).any():
                raise InvalidInput(f"{name} is {value}; every entry must lie in [0, 1]")
        if abs(prior.sum() - 1) > PRIOR_SLACK:
            raise InvalidInput(f"prior sums to {prior.sum()}; divide it by its sum")
        object.__setattr__(self, "prior", prior)
        object.__setattr__(self, "accuracy", accuracy)
        object.__setattr__(self, "mean", mean)

    @property
    def mass(self) -> Float[Array, " c"]:
        """pi_k t_k, the probability of a correctly classified input of class k."""
        return self.prior * self.accuracy


def class_statistics(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"]
) -> ClassStatistics:
    """Class statistics of a sample, identity: x (m, n), y (m,) in [0, c). A tie is not a correct decision.

    Raises: InvalidInput for shapes that disagree, NaN, labels outside the classes, or a single class in y.
    """
    distance = boundary_distances(clf, x, y, p=math.inf)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    counts = np.bincount(y, minlength=distance.shape[1])
    if np.count_nonzero(counts) < 2:
        raise InvalidInput(f"y holds only the label {int(y[0])}; pass examples of at least two classes")
    correct = distance.min(axis=1) > 0
    hits = np.bincount(y[correct], minlength=counts.size)
    mean = np.zeros((counts.size, x.shape[1]))
    for k in np.flatnonzero(hits):
        mean[k] = mean_of(x[correct & (y == k)])
    return ClassStatistics(counts / counts.sum(), hits / np.maximum(counts, 1), mean)
