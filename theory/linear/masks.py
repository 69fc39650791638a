"""Random pruning of a linear classifier: the exact average over all 2^n Bernoulli masks in O(n) per node."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.types import InvalidInput, check_p, check_sparsity, finite_array

# With the map below the trapezoid rule errs by about exp(-7/h): 1e-24 at this step, 1e-12 at twice the step.
STEP = 0.125
LEFT = -4.5  # u^(1/2) has fallen to exp(-47) there
RIGHT = 45.0  # u a_i at the right end for the smallest a_i; exp(-45) is below rounding
EPSILON = float(np.finfo(np.float64).eps)
PRODUCT = 16 * EPSILON  # relative error of the logarithm of a product: of each term, and of their sum
UNDERFLOW = float(np.finfo(np.float64).tiny)  # a term may be lost below this share of the largest gain
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)
BLOCK = 1 << 16  # nodes times weights held at once: half a MiB per array stays in cache


@dataclass(frozen=True)
class MaskAverage:
    """Expectations over random masks, one per sparsity: value (k,) and an estimate of its error (k,)."""

    value: Float[Array, " k"]
    error: Float[Array, " k"]


def check_sparsities(alphas: Float[Array, " k"]) -> Float[Array, " k"]:
    """Return sparsities as float64 (k,). Raises: InvalidInput unless every one lies in [0, 1]."""
    checked = finite_array("alphas", alphas, ndim=1)
    for k, alpha in enumerate(checked.tolist()):
        check_sparsity(f"alphas[{k}]", alpha)
    return checked


def masked_mean_radius(
    weight: Float[Array, " n"], gain: Float[Array, " n"], alphas: Float[Array, " k"], *, p: float
) -> MaskAverage:
    """Bernoulli masks, identity: E_M[gain.(w*M) / ||w*M||_q] over i.i.d. masks that keep w_i with 1 - alpha.

    Masks that keep no weight count 0. With gain = sum_k k pi_k E[x | k], k = -1, +1, the average is at most
    the expected mean radius of the masked classifiers with bias 0 (a bound), and equals it when every mask
    classifies every input correctly: mistakes enter with their negative distance, the mean radius with 0.

    With a_i = |w_i|, s = 1 (p = inf) or a_i = w_i^2, s = 1/2 (p = 2), the Gamma integral for (sum a_i M_i)^-s
    turns the expectation of a ratio into one integral of a product over i, by independence:
    (1-alpha)/Gamma(s) int u^(s-1) sum_i gain_i w_i e^(-u a_i) prod_{j != i} D_j(u) du over u > 0, where
    D_j(u) = alpha + (1-alpha) e^(-u a_j).
    The substitution u = exp(t - exp(-t)) / sum_i a_i makes both ends decay doubly exponentially; the
    trapezoid rule then converges exponentially. ``error`` is an estimate that no test has seen passed: the
    change from twice the step, far above the truncation error that is left, plus what rounding can do. Only
    a_i / max a enters, in logarithms, so any range of weights is safe; the number of nodes grows with the
    logarithm of that range.
    Raises: InvalidInput for NaN, shapes that disagree, a zero weight vector, alphas outside [0, 1], or
    unless p is 2 or inf.
    Source: this project; theory/symbolic_random.py::prove_mask_integral.
    """
    weight, gain = finite_array("weight", weight, ndim=1), finite_array("gain", gain, ndim=1)
    alphas = check_sparsities(alphas)
    if gain.shape != weight.shape:
        raise InvalidInput(f"gain has shape {gain.shape}; pass one entry for each of {weight.size} weights")
    power = 1.0 if check_p(p) == math.inf else 0.5
    used = weight != 0
    if not used.any():
        raise InvalidInput("weight is 0 in every entry; pass a classifier with a non-zero weight")
    mantissa, exponent = np.frexp(weight[used])
    unit = np.frexp(np.abs(gain[used]).max())[1]  # gains as large as floats may be must not overflow in sums
    weight, gain = np.ldexp(mantissa, exponent - exponent.max()), np.ldexp(gain[used], -unit)
    signed = np.stack([gain * np.sign(mantissa), np.abs(gain)], axis=1)
    inside = (alphas > 0) & (alphas < 1)
    log_a = (np.log(np.abs(mantissa)) + math.log(2) * (exponent - exponent.max())) / power
    log_a -= log_a.max()
    fine, coarse = _trapezoid(log_a, signed, alphas[inside], power=power)
    value, error = np.zeros(alphas.shape), np.full(alphas.shape, UNDERFLOW)
    # Sums of n terms, and logarithms whose absolute error is a relative one of every u a_i.
    rounding = EPSILON * (4 * math.sqrt(weight.size) + 2 * np.abs(log_a).max())
    value[inside] = fine[:, 0]
    error[inside] += np.abs(fine[:, 0] - coarse[:, 0]) + rounding * fine[:, 1] + PRODUCT * fine[:, 2]
    share = np.abs(weight) / norm(weight[None], p=dual(p))
    value[alphas == 0] = share @ signed[:, 0]
    error[alphas == 1] = 0.0
    error[alphas == 0] += rounding * (share @ signed[:, 1])
    with np.errstate(over="ignore"):  # beyond the largest float, and then the error is unknown
        value = np.ldexp(value, unit)
        error = np.ldexp(error, unit) + np.where(alphas == 1, 0.0, SMALLEST)
        return MaskAverage(value, np.where(np.isinf(value), math.inf, error))


def _log_survival(alpha: float, survives: Array, lost: Array) -> Array:
    """log(survives) for survives = 1 + (1-alpha) lost, to a few roundings of itself.

    Near 0 it is log1p((1-alpha) lost): a rounding of 1 there would be repeated once for each weight.
    """
    change = (1 - alpha) * lost
    if alpha >= 0.5:
        return np.log1p(change)
    far = change < -0.5
    out = np.log1p(change, where=~far, out=change)
    return np.log(survives, where=far, out=out)


def _trapezoid(
    log_a: Float[Array, " n"], signed: Float[Array, "n 2"], alphas: Float[Array, " k"], *, power: float
) -> tuple[Float[Array, "k 3"], Float[Array, "k 3"]]:
    """The integral for both columns of ``signed``, at STEP and at twice STEP, for log_a of maximum 0.

    In v = log u the integrand is sum_i signed_i K_i / D_i prod_j D_j with K_i = (u a_i)^s e^(-u a_i) and
    D_j = alpha + (1-alpha) e^(-u a_j): every factor but K_i / D_i is at most 1, and no power of a_i is left.
    The third number is the second with the weight -log prod_j D_j: it measures the rounding of the product.
    """
    total = math.log(np.exp(log_a).sum())
    t = np.arange(LEFT, math.log(RIGHT) + total - log_a.min() + STEP, STEP)
    step = (1 + np.exp(-t)) * STEP / math.gamma(power)
    rules = np.stack([step, np.where(np.arange(t.size) % 2 == 0, 2 * step, 0.0)])
    log_u = t - np.exp(-t) - total
    out = np.zeros((2, alphas.size, 3))
    for nodes in np.array_split(np.arange(t.size), 1 + t.size * log_a.size // BLOCK):
        log_ua = np.minimum(log_u[nodes, None] + log_a, math.log(1e3))  # e^-1000 is 0 already
        ua = np.exp(log_ua)
        decay, lost = np.exp(-ua), np.expm1(-ua)
        kernel = np.exp(power * log_ua) * decay
        for k, alpha in enumerate(alphas):
            survives = alpha + (1 - alpha) * decay
            log_product = _log_survival(alpha, survives, lost).sum(axis=1)
            integrand = (kernel / survives) @ signed
            integrand *= (1 - alpha) * np.exp(log_product)[:, None]
            rounded = -log_product * integrand[:, 1]
            out[:, k] += rules[:, nodes] @ np.column_stack([integrand, rounded])
    return out[0], out[1]
