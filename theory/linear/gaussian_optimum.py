"""The best robust classifier of two isotropic Gaussian classes: what no attack and no pruning can change."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import ndtr

from theory.linear.exact import check_budget
from theory.norms import norm
from theory.types import BinaryLinear, InvalidInput, check_p, finite_array


def optimal_robust_accuracy(mean: Float[Array, "2 n"], *, sigma: float, p: float, eps: float) -> float:
    """Two Gaussian classes, identity: max over all classifiers of P(rho_p > eps) = Phi(|r|_2 / sigma).

    Classes N(mean[k], sigma^2 I) of prior 1/2 each, d = (mean[1] - mean[0]) / 2, and r = d - z for the z of
    the ball |z|_p <= eps next to d: r = d max(0, 1 - eps / |d|_2) in l_2, r_i = sign(d_i) max(|d_i| - eps, 0)
    in l_inf. eps = 0 is Bayes' accuracy Phi(|d|_2 / sigma); a ball that reaches d leaves 1/2, a guess.

    Proof: an attack may move class 1 by -z and class 0 by z, after which the means differ by 2 r and no
    classifier is right more often than Phi(|r|_2 / sigma). The linear one with weight r and its boundary
    half-way between the means attains it: r.z = eps |r|_q, so its share is Phi((r.d - eps |r|_q) / (sigma
    |r|_2)), and r.d - r.z = |r|_2^2.

    Raises: InvalidInput unless mean is (2, n), sigma > 0, p is 2 or inf and eps >= 0.
    Source: the optimal classifier of Bhagoji, Cullina and Mittal, arXiv:1909.12272, for p = 2 and inf.
    """
    rest, exponent = _rest(mean, p=p, eps=eps)
    spread, of_spread = math.frexp(_check_sigma(sigma))
    with np.errstate(over="ignore"):
        return float(ndtr(np.ldexp(norm(rest, p=2.0) / spread, exponent - of_spread)))


def optimal_robust_classifier(mean: Float[Array, "2 n"], *, p: float, eps: float) -> BinaryLinear:
    """Two Gaussian classes, identity: the linear classifier that attains :func:`optimal_robust_accuracy`.

    Weight r, bias -r.(mean[0] + mean[1]) / 2, whatever sigma is, both times a power of two that brings the
    largest entry of r near 1, or lower, lest the bias leave the floats. In l_inf it is sparse: coordinates in
    which the classes differ by at most 2 eps get no weight.
    Raises: InvalidInput unless mean is (2, n), p is 2 or inf and eps >= 0, or if the ball of radius eps
    reaches half-way from one mean to the other: then every classifier is a guess.
    Source: as :func:`optimal_robust_accuracy`.
    """
    mean = finite_array("mean", mean, ndim=2)
    rest, _ = _rest(mean, p=p, eps=eps)
    if not rest.any():
        raise InvalidInput(f"eps is {eps}; it reaches half-way between the means, so choose a smaller one")
    used = mean * (rest != 0)
    size, top = (int(np.frexp(np.abs(part).max())[1]) for part in (rest, used))
    unit = np.ldexp(rest, -size)
    middle = unit @ np.ldexp(used, -top).sum(axis=0) / 2  # at most the number of entries
    room = min(1000 - top - rest.size.bit_length(), 0)
    return BinaryLinear(np.ldexp(unit, room), -float(np.ldexp(middle, top + room)))


def _rest(mean: Float[Array, "2 n"], *, p: float, eps: float) -> tuple[Float[Array, " n"], int]:
    """Half the difference of the means, less the point of the ball |z|_p <= eps that is next to it.

    In units of a power of two, the second value, that brings the largest difference near 1.
    """
    mean = finite_array("mean", mean, ndim=2)
    if len(mean) != 2:
        raise InvalidInput(f"mean has shape {mean.shape}; pass (2, n), one row per class")
    eps = check_budget("eps", eps)
    check_p(p)
    size = np.frexp(np.abs(mean).max(axis=0))[1]
    half, own = np.frexp(np.ldexp(mean[1], -size) - np.ldexp(mean[0], -size))
    own += size - 1
    exponent = int(own[half != 0].max()) if half.any() else 0
    half = np.ldexp(half, own - exponent)
    with np.errstate(over="ignore"):
        eps = float(np.ldexp(eps, -exponent))
    if p == math.inf:
        return np.sign(half) * np.maximum(np.abs(half) - eps, 0.0), exponent
    length = float(norm(half, p=2.0))
    rest = half * ((length - eps) / length) if eps < length else np.zeros_like(half)
    return rest, exponent


def _check_sigma(sigma: float) -> float:
    if not 0 < sigma < math.inf:
        raise InvalidInput(f"sigma is {sigma}; a standard deviation is positive and finite")
    return float(sigma)
