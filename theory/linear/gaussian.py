"""Gaussian classes: closed forms for a given linear classifier, and the limits of magnitude pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import erfcx, ndtr, ndtri

from theory.linear.exact import check_budget
from theory.linear.masks import check_sparsities
from theory.linear.statistics import PRIOR_SLACK, ClassStatistics
from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput, check_p, finite_array

# Eigenvalues of a covariance may come out this far below 0, relative to the largest, by rounding.
EIGENVALUE_SLACK = 1e-10


@dataclass(frozen=True)
class GaussianClasses:
    """Two classes x | k ~ N(mean[k], covariance): mean (2, n), covariance (n, n), prior (2,).

    The symmetric case x | y ~ N(y m, S), y = -1, +1 has mean = (-m, m). A singular covariance is allowed.
    Raises: InvalidInput for NaN, shapes that disagree, a covariance that is not symmetric and positive
    semi-definite, or priors that are not two probabilities that sum to 1.
    """

    mean: Float[Array, "2 n"]
    covariance: Float[Array, "n n"]
    prior: Float[Array, " 2"]

    def __post_init__(self) -> None:
        mean = finite_array("mean", self.mean, ndim=2)
        covariance = finite_array("covariance", self.covariance, ndim=2)
        prior = finite_array("prior", self.prior, ndim=1)
        width = mean.shape[1]
        if mean.shape[0] != 2 or covariance.shape != (width, width) or prior.shape != (2,):
            raise InvalidInput(
                f"mean has shape {mean.shape}, covariance {covariance.shape} and prior {prior.shape}; "
                "pass (2, n), (n, n) and (2,)"
            )
        if (prior < 0).any() or abs(prior.sum() - 1) > PRIOR_SLACK:
            raise InvalidInput(f"prior is {prior}; pass two probabilities that sum to 1")
        values = np.linalg.eigvalsh(covariance)
        if not np.array_equal(covariance, covariance.T) or values[0] < -EIGENVALUE_SLACK * abs(values[-1]):
            raise InvalidInput(
                f"covariance has smallest eigenvalue {values[0]}; "
                "pass a symmetric positive semi-definite matrix"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "prior", prior)


def unit_weight(clf: BinaryLinear, data: GaussianClasses) -> tuple[Float[Array, " n"], int]:
    """The weight over a power of 2, which brings its largest entry into [1, 2), and that power: an identity.

    Raises: InvalidInput for a zero weight or another number of features.
    """
    if clf.weight.size != data.mean.shape[1]:
        raise InvalidInput(f"data has {data.mean.shape[1]} features; the classifier takes {clf.weight.size}")
    if not clf.weight.any():
        raise InvalidInput("weight is 0 in every entry; a binary classifier needs a non-zero weight")
    exponent = int(np.frexp(np.abs(clf.weight).max())[1]) - 1
    return np.ldexp(clf.weight, -exponent), exponent


def unit_normal(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> tuple[Float[Array, " n"], float]:
    """w / ||w||_q and b / ||w||_q, an identity; the second is infinite where it exceeds the floats.

    Raises: InvalidInput as ``unit_weight``.
    """
    weight, exponent = unit_weight(clf, data)
    size = norm(weight[None], p=dual(p))[0]
    with np.errstate(over="ignore"):
        return weight / size, float(np.ldexp(clf.bias / size, -exponent))


def _distance_law(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> tuple[Array, float]:
    """Mean (2,) and standard deviation of the signed distance k (w.x + b) / ||w||_q, Gaussian per class."""
    unit, bias = unit_normal(clf, data, p=p)
    return np.array([-1.0, 1.0]) * affine(data.mean, unit, bias), deviation(unit, data)


def affine(x: Float[Array, "m n"], unit: Float[Array, " n"], bias: float) -> Float[Array, " m"]:
    """x.u + b for |u_i| <= 2, an identity; partial sums stay within the floats where the result does."""
    smaller = max(int(np.frexp(np.abs(x).max())[1]) + (4 * unit.size).bit_length() - 1023, 0)
    with np.errstate(over="ignore"):
        return np.ldexp(np.ldexp(x, -smaller) @ unit + np.ldexp(bias, -smaller), smaller)


def deviation(direction: Float[Array, " n"], data: GaussianClasses) -> float:
    """sqrt(u'Su) for a direction u, an identity: summed in units of the largest term, whatever its size."""
    (mantissa, own), (entries, size) = np.frexp(direction), np.frexp(data.covariance)
    size = size + own + own[:, None]
    used = (entries != 0) & (mantissa != 0) & (mantissa != 0)[:, None]
    if not used.any():
        return 0.0
    half = int(size[used].max()) // 2
    terms = np.ldexp(np.where(used, entries, 0.0), np.where(used, size - 2 * half, 0))
    return float(np.ldexp(math.sqrt(max(float(mantissa @ terms @ mantissa), 0.0)), half))


def _average(data: GaussianClasses, values: Float[Array, " 2"]) -> float:
    """sum_k pi_k values_k, where a class that never occurs counts 0 even if its value is infinite."""
    return float(data.prior @ np.where(data.prior > 0, values, 0.0))


def _mean_positive_part(a: Float[Array, " k"], s: float) -> Float[Array, " k"]:
    """E[max(N(a, s^2), 0)] = a Phi(a/s) + s phi(a/s), without cancellation for a < 0."""
    if s == 0:
        return np.maximum(a, 0.0)
    with np.errstate(over="ignore"):
        z = np.clip(a / s, -40.0, 40.0)  # phi is 0 in float64 beyond
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    lower = np.minimum(z, 0.0)
    below = density * (1 + lower * math.sqrt(math.pi / 2) * erfcx(-lower / math.sqrt(2)))
    with np.errstate(invalid="ignore"):  # -inf times 0, where the other branch counts
        return np.where(z < 0, s * below, a * ndtr(z) + s * density)


def gaussian_mean_radius(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> float:
    """Gaussian classes, identity: R_p = sum_k pi_k (a_k Phi(a_k/s) + s phi(a_k/s)), no sampling.

    a_k = k (w.m_k + b) / ||w||_q and s = sqrt(w'Sw) / ||w||_q are mean and standard deviation of the signed
    distance to the boundary in class k = -1, +1. s = 0 gives max(a_k, 0).
    Raises: InvalidInput unless p is 2 or inf, for a zero weight or another number of features.
    Source: this project; theory/symbolic_random.py::prove_mean_positive_part.
    """
    a, s = _distance_law(clf, data, p=p)
    return _average(data, _mean_positive_part(a, s))


def _share_beyond(a: Float[Array, " k"], s: float, *, eps: float) -> Float[Array, " k"]:
    """P(N(a, s^2) > eps)."""
    if eps == math.inf:
        return np.zeros_like(a)
    if s == 0:
        return (a > eps).astype(np.float64)
    with np.errstate(over="ignore"):
        return ndtr((a - eps) / s)


def gaussian_robust_accuracy(clf: BinaryLinear, data: GaussianClasses, *, p: float, eps: float) -> float:
    """Gaussian classes, identity: P(rho_p > eps) = sum_k pi_k Phi((a_k - eps) / s); eps = 0 is the accuracy.

    Raises: InvalidInput as ``gaussian_mean_radius``, or for a negative eps.
    Source: this project.
    """
    a, s = _distance_law(clf, data, p=p)
    return _average(data, _share_beyond(a, s, eps=check_budget("eps", eps)))


def gaussian_statistics(clf: BinaryLinear, data: GaussianClasses) -> ClassStatistics:
    """Gaussian classes, identity: accuracy per class and mean of its correctly classified inputs.

    t_k = Phi(z_k) and mu_k = m_k + k S w phi(z_k) / (Phi(z_k) sqrt(w'Sw)), z_k = k (w.m_k + b) / sqrt(w'Sw):
    what the bounds from class statistics need, without a sample.
    Raises: InvalidInput as ``gaussian_mean_radius``.
    Source: this project.
    """
    a, s = _distance_law(clf, data, p=2.0)
    accuracy = _share_beyond(a, s, eps=0.0)
    if s == 0:
        return ClassStatistics(data.prior, accuracy, data.mean * accuracy[:, None])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of classes without correct inputs
        lean = math.sqrt(2 / math.pi) / erfcx(-a / s / math.sqrt(2))  # phi / Phi
        direction = data.covariance @ unit_normal(clf, data, p=2.0)[0] / s
        mean = data.mean + np.outer(np.array([-1.0, 1.0]) * lean, direction)
    return ClassStatistics(data.prior, accuracy, np.where(accuracy[:, None] > 0, mean, 0.0))


def _below_one(alphas: Float[Array, " k"]) -> Float[Array, " k"]:
    alphas = check_sparsities(alphas)
    if (alphas == 1).any():
        where = int(np.argmax(alphas == 1))
        raise InvalidInput(f"alphas[{where}] is 1; a classifier keeps some weight, so pass alphas below 1")
    return alphas


def gaussian_pruning_limit(alphas: Float[Array, " k"], *, p: float) -> Float[Array, " k"]:
    """Magnitude pruning, Gaussian weights, identity in the limit n -> inf: R_2 / sqrt(n), or R_inf.

    x | y ~ N(y m, I) with m_i i.i.d. N(0, 1); the optimal w = m keeps its entries |w_i| > tau, with
    alpha = 2 Phi(tau) - 1. Then R_2 / sqrt(n) -> sqrt(2 (tau phi + Q)), which falls to 0, and
    R_inf -> (tau phi + Q) / phi, which rises like tau: phi = phi(tau), Q = 1 - Phi(tau).
    Raises: InvalidInput unless p is 2 or inf and every alpha lies in [0, 1).
    Source: this project; theory/symbolic_random.py::prove_pruning_limit.
    """
    check_p(p)
    tau = -ndtri((1 - _below_one(alphas)) / 2)
    mills = math.sqrt(math.pi / 2) * erfcx(tau / math.sqrt(2))
    if p == math.inf:
        return tau + mills
    density = np.exp(-tau * tau / 2) / math.sqrt(2 * math.pi)
    return np.sqrt(2 * density * (tau + mills))


def laplace_pruning_limit(alphas: Float[Array, " k"], *, p: float) -> Float[Array, " k"]:
    """Magnitude pruning, Laplace weights, identity in the limit n -> inf: R_2 / sqrt(n), or R_inf.

    As ``gaussian_pruning_limit`` with m_i of density exp(-|m|)/2 and alpha = 1 - exp(-tau):
    R_2 / sqrt(n) -> sqrt(exp(-tau) (tau^2 + 2 tau + 2)), R_inf -> (tau^2 + 2 tau + 2) / (tau + 1).
    Raises: InvalidInput unless p is 2 or inf and every alpha lies in [0, 1).
    Source: this project; theory/symbolic_random.py::prove_pruning_limit.
    """
    check_p(p)
    alphas = _below_one(alphas)
    tau = -np.log1p(-alphas)
    moment = tau * tau + 2 * tau + 2
    return moment / (tau + 1) if p == math.inf else np.sqrt((1 - alphas) * moment)
