"""Moments of rectified Gaussian variables, safe in both tails."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import erfcx, ndtr

# exp(-t^2 / 2) is 0 in float64 long before: beyond this many standard deviations nothing is left of the tail.
FARTHEST = 60.0


def rectified_moments(
    mean: Float[Array, "*s"], variance: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"], Float[Array, "*s"], Float[Array, "*s"]]:
    """E max(z,0), Var max(z,0), P(z > 0) and the density of z at 0 for Gaussian z, an identity.

    With t = mean / sd, Phi and phi of the standard normal, and the tail moments n_1 = E max(-z, 0) =
    sd phi(t) (1 - t M(t)), n_2 = E max(-z,0)^2 = sd^2 phi(t) ((1 + t^2) M(t) - t), M(t) = (1 - Phi(t)) /
    phi(t) = sqrt(pi/2) erfcx(t / sqrt 2):  for mean >= 0, E = mean + n_1 and Var = sd^2 - n_2 - 2 mean n_1 -
    n_1^2; for mean < 0 the tail itself, with -t for t. Neither form subtracts numbers of the size of mean^2,
    so the variance keeps its digits where mean >> sd. The first three are good to a relative 1e-9 down to
    where phi(t) underflows (|t| = 37.5). Variance 0 is the constant max(mean, 0), active where mean > 0, and
    its density is given as 0.

    Reference: theory/symbolic_moments.py::prove_rectified_mean and the proofs beside it.
    """
    sd = np.sqrt(variance)
    random = sd > 0
    unit = np.where(random, sd, 1.0)
    with np.errstate(over="ignore"):
        t = np.clip(np.where(random, mean, 0.0) / unit, -FARTHEST, FARTHEST)
    size = np.abs(t)
    mills = math.sqrt(math.pi / 2) * erfcx(size / math.sqrt(2))
    density = np.exp(-size * size / 2) / math.sqrt(2 * math.pi)
    first = density * np.maximum(1 - size * mills, 0.0)  # E of the smaller side, in standard deviations
    second = density * np.maximum((1 + size * size) * mills - size, 0.0)
    larger = 1 - second - 2 * size * first - first * first
    spread = np.where(t > 0, larger, second - first * first)
    expected = np.where(mean > 0, mean, 0.0) + sd * first
    active = np.where(random, ndtr(t), mean > 0)
    return (
        np.where(random, expected, np.maximum(mean, 0.0)),
        np.where(random, variance * np.maximum(spread, 0.0), 0.0),
        active,
        np.where(random, density / unit, 0.0),
    )


def folded_mean(mean: Float[Array, "*s"], variance: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """E|z| of Gaussian z, an identity: E max(z, 0) + E max(-z, 0)."""
    return rectified_moments(mean, variance)[0] + rectified_moments(-mean, variance)[0]
