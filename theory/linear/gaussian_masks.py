"""Gaussian classes under random masks: the exact average of the closed form over all 2^n Bernoulli masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float
from numpy import ndarray as Array
from scipy.special import ndtr

from theory.linear.gaussian import (
    GaussianClasses,
    affine,
    deviation,
    gaussian_mean_radius,
    unit_normal,
    unit_weight,
)
from theory.linear.masks import EPSILON, LEFT, RIGHT, STEP, UNDERFLOW, MaskAverage, check_sparsities
from theory.types import BinaryLinear, InvalidInput, check_p

# On the contour z = r (1 + i sinh x) the trapezoid rule starts with this step,
CONTOUR_STEP = 0.1
SMALLEST_STEP = CONTOUR_STEP / 16  # which is halved at least once, and down to this
SAFETY = 4  # times the error of a step 3/2 as long, which has no aliases in common, is the stated error
ENOUGH = 1e-12  # until that is less than this share of the largest addition
CONTOUR_END = 42.0  # 1 / sinh(42) is below rounding, however slowly the rest decays
MARGIN = 2.0  # real parts up to this multiple of r may occur when the contour is shifted,
GROWTH = 3.0  # and must not raise the logarithm of the integrand by more than this
SHRINK = 0.7  # r is shortened by this factor until that holds
WIDEST = 1e-100  # smallest over largest weight: its square must be a float
FARTHEST = 1e150  # bias over the largest weight: its square must be a float
NEGLIGIBLE = 1e-17
BLOCK = 1 << 14  # complex nodes times weights held at once


def masked_gaussian_mean_radius(
    clf: BinaryLinear, data: GaussianClasses, alphas: Float[Array, " k"], *, p: float
) -> MaskAverage:
    """Gaussian classes under Bernoulli masks, identity: E_M[R_p(w*M, b)], masks keeping w_i with 1 - alpha.

    R_p is ``gaussian_mean_radius``: mistakes count 0, the bias stays, and a mask without weights counts 0.
    Given M the signed score T = k ((w*M).x + b) is Gaussian. With A = sum_i a_i M_i and a_i, s as in
    ``masked_mean_radius``, E[T_+ / A^s] is a double integral over u > 0 and a line Re z = r > 0, by the Gamma
    integral for A / A^(s+1) and the Laplace inversion of T_+:
    1/Gamma(s+1) int u^s 1/(2 pi i) int E[A e^(-u A + z T)] / z^2 dz du. For a diagonal covariance S the
    expectation is a product over i: e^(k z b) sum_i (1-alpha) a_i E_i prod_{j != i} D_j, where
    D_i = alpha + (1-alpha) E_i, E_i = exp(-u a_i + z k w_i m_ki + z^2 w_i^2 S_ii / 2).
    Both integrals are trapezoid sums that converge exponentially; r is chosen for every u. ``error`` is an
    estimate that no test has seen passed: the changes from longer steps in u and in z, as a rule far above
    the truncation error that is left, plus what rounding can do. It grows, and so does the time, where the
    class means of a masked classifier are some 50 standard deviations of the score or more apart, and is inf,
    of the value 0, where the sums do not converge or floats do not hold their terms.
    Raises: InvalidInput as ``gaussian_mean_radius``, for alphas outside [0, 1], or unless the covariance is
    diagonal and positive at every non-zero weight, not all below 1e-300, the weights span at most 100
    orders of magnitude, and the bias is at most 1e150 times the largest.
    Source: this project; theory/symbolic_random.py::prove_laplace_inversion.
    """
    alphas, power = check_sparsities(alphas), 1.0 if check_p(p) == math.inf else 0.5
    weight, exponent = unit_weight(clf, data)
    with np.errstate(over="ignore"):
        bias = float(np.ldexp(clf.bias, -exponent))
    if abs(bias) > FARTHEST:
        raise InvalidInput(
            f"bias is {clf.bias}, too large beside weights of at most {np.abs(clf.weight).max()} for floats; "
            "give a classifier whose boundary is nearer"
        )
    used = clf.weight != 0
    spread = data.covariance.diagonal()[used]
    if (data.covariance != np.diag(data.covariance.diagonal())).any() or (spread <= 0).any():
        raise InvalidInput(
            "covariance is not diagonal or is 0 at a non-zero weight; pass independent features"
        )
    size = np.abs(clf.weight[used])
    if size.min() < WIDEST * size.max():
        raise InvalidInput(f"weight spans {size.min()} to {size.max()}; set those below 1e-100 of it to 0")
    weight = weight[used]
    a, variance = np.abs(weight) ** (1 / power), weight * weight * spread
    with np.errstate(divide="ignore", over="ignore"):
        if not np.isfinite((a / variance).min()):  # where every contour would start
            raise InvalidInput(
                f"covariance has variances of at most {spread.max()}, too small beside the weights for "
                "floating point; give features and covariance in smaller units"
            )
    value, error = np.zeros(alphas.shape), np.where(alphas == 1, 0.0, UNDERFLOW)
    sides = [(data.prior[k], sign * data.mean[k, used], sign * bias) for k, sign in enumerate((-1.0, 1.0))]
    if np.array_equal(sides[0][1], sides[1][1]) and sides[0][2] == sides[1][2]:
        sides = [(data.prior.sum(), *sides[1][1:])]  # the symmetric case costs half
    for prior, mean, side_bias in sides:
        law = _MaskedScore(a, weight * mean, variance, side_bias, power)
        for k, alpha in enumerate(alphas):
            if 0 < alpha < 1 and prior > 0:
                found = law.average(float(alpha))
                value[k] += prior * found[0]
                error[k] += prior * found[1]
    if (alphas == 0).any():
        value[alphas == 0] = gaussian_mean_radius(clf, data, p=p)
        error[alphas == 0] += 4 * EPSILON * (weight.size + 4) * _sensitivity(clf, data, p=p)
    return MaskAverage(np.where(np.isinf(error), 0.0, value.clip(min=0.0)), error)


def _sensitivity(clf: BinaryLinear, data: GaussianClasses, *, p: float) -> float:
    """What one relative rounding of every term of the score changes in ``gaussian_mean_radius``, an estimate.

    d E[T_+] = P(T > 0) da + phi(a/s) ds, a the mean of T and s its standard deviation.
    """
    unit, bias = unit_normal(clf, data, p=p)
    a, s = np.array([-1.0, 1.0]) * affine(data.mean, unit, bias), deviation(unit, data)
    terms = affine(np.abs(data.mean), np.abs(unit), abs(bias))
    density = np.exp(-np.square(a / s) / 2)
    return float(data.prior @ (ndtr(a / s) * terms + density * s))


@dataclass(frozen=True)
class _MaskedScore:
    """The law of (A, T) over masks: a_i (n,), c_i (n,), v_i (n,), the bias of T, and the power s of A."""

    a: Float[Array, " n"]
    c: Float[Array, " n"]
    v: Float[Array, " n"]
    bias: float
    power: float

    def average(self, alpha: float) -> tuple[float, float]:
        """E[T_+ / A^s; M not empty] and the estimate of its error; 0 and inf where floats cannot hold it."""
        total = self.a.sum()
        t = np.arange(LEFT, math.log(RIGHT * total / self.a.min()) + STEP, STEP)
        u = np.exp(t - np.exp(-t)) / total
        outer = u ** (self.power + 1) * (1 + np.exp(-t)) * STEP / math.gamma(self.power + 1)
        r, inner = self._abscissa(u, alpha), np.zeros((u.size, 3))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # T_+ <= e^(r T) / (e r): an upper limit of what every u adds.
            most = np.log(outer) + self._log_real(u, r, alpha) - np.log(r)
        needed = np.flatnonzero(most > most.max() + math.log(NEGLIGIBLE))
        if not needed.size:
            return 0.0, math.inf
        with np.errstate(invalid="ignore", over="ignore"):
            unit = np.exp(most.max() - np.log(outer[needed]))  # what would count as the largest addition
            for some in np.array_split(np.arange(needed.size), 1 + needed.size * self.a.size // BLOCK):
                inner[needed[some]] = self._invert(u[needed[some]], r[needed[some]], alpha, unit[some])
            fine, change, size = outer @ inner
            every_other = 2 * outer[::2] @ inner[::2, 0]
            error = change + abs(fine - every_other) + 4 * EPSILON * self.a.size * size
        return (fine, error) if math.isfinite(fine) and not math.isnan(error) else (0.0, math.inf)

    def _log_real(self, u: Float[Array, " m"], z: Float[Array, " m"], alpha: float) -> Float[Array, " m"]:
        """log E[A exp(-u A + z T)] for real z; inf or NaN where that overflows."""
        kept = z[:, None] * self.c + (z * z)[:, None] * (self.v / 2) - u[:, None] * self.a
        kept += math.log1p(-alpha)
        survives = np.logaddexp(math.log(alpha), kept)
        return survives.sum(axis=1) + np.log(np.exp(kept - survives) @ self.a) + z * self.bias

    def _abscissa(self, u: Float[Array, " m"], alpha: float) -> Float[Array, " m"]:
        """r for every u: no mask may outgrow the integrand at z = 0, nor e^(-u a_i) be undone by any v_i."""
        with np.errstate(all="ignore"):
            r = np.sqrt(u * (self.a / self.v).min()) / MARGIN
            start = self._log_real(u, np.zeros_like(u), alpha)
            pending = np.flatnonzero(np.isfinite(start))
            while pending.size:
                reach = MARGIN * r[pending]
                top = [self._log_real(u[pending], sign * reach, alpha) for sign in (1, -1)]
                fits = np.maximum(*top) - start[pending] <= GROWTH
                pending = pending[~fits]
                r[pending] *= SHRINK
        return r

    def _invert(
        self, u: Float[Array, " m"], r: Float[Array, " m"], alpha: float, unit: Float[Array, " m"]
    ) -> Float[Array, "m 3"]:
        """E[A T_+ e^(-u A)] for every u, an estimate of its error, and its sum without signs.

        The error by 3/2 of the step is taken as the change from there, which may vanish by chance, or as what
        the change from twice the step would come to if errors fell exponentially: e(3h/2)^3 = e(2h)^4 / size.
        """
        sums, doubt = np.zeros((u.size, 3)), np.full(u.size, math.inf)
        pending, step = np.arange(u.size), CONTOUR_STEP
        while pending.size and step >= SMALLEST_STEP:
            twice = sums[pending, 0]
            sums[pending] /= 2  # the points of twice the step, whose shares are halved
            sums[pending] += self._contour(u[pending], r[pending], alpha, unit[pending], step)
            fine, check, size = sums[pending].T
            if step < CONTOUR_STEP:
                change = np.abs(fine - twice)
                expected = change * np.cbrt(np.divide(change, size, out=np.zeros_like(size), where=size > 0))
                doubt[pending] = np.maximum(np.abs(fine - check), expected)
            pending = pending[doubt[pending] > ENOUGH * unit[pending]]
            step /= 2
        return np.column_stack([sums[:, 0], SAFETY * doubt, sums[:, 2]])

    def _contour(
        self,
        u: Float[Array, " m"],
        r: Float[Array, " m"],
        alpha: float,
        unit: Float[Array, " m"],
        step: float,
    ) -> Float[Array, "m 3"]:
        """Trapezoid sums along z = r (1 + i sinh x): by this step, by 3/2 of it, and without signs.

        Of a smaller step than the first, only the points that twice the step leaves out. Each sum ends
        after its first negligible term; points are taken several at a time.
        """
        out, active = np.zeros((u.size, 3)), np.arange(u.size)
        k = np.arange(math.ceil(2 * CONTOUR_END / step))  # x = k step / 2
        fine, check = (k % 2 == 0, k % 3 == 0) if step == CONTOUR_STEP else (k % 4 == 2, k % 6 == 3)
        # Conjugate points count together, hence 1 / pi for 1 / (2 pi), and half of it at x = 0.
        share = step / math.pi * np.where(k == 0, 0.5, 1.0)
        rules = share[:, None] * np.stack([fine, 1.5 * check, fine], axis=1)
        k, rules = k[fine | check], rules[fine | check]
        x, start = k * (step / 2), 0
        while active.size and start < k.size:
            fit = BLOCK // (active.size * self.a.size)
            some = slice(start, start + max(1, min(fit, 4 + start // 4)))  # few past the ends of the sums
            z = r[active, None] * (1 + 1j * np.sinh(x[some]))
            term = self._product(u[active], z, alpha) * (r[active, None] * np.cosh(x[some])) / (z * z)
            size = np.abs(term)
            goes_on = np.logical_and.accumulate(size > NEGLIGIBLE * unit[active, None], axis=1)
            counts = np.concatenate([np.ones((active.size, 1), dtype=bool), goes_on[:, :-1]], axis=1)
            real, size = np.where(counts, term.real, 0.0), np.where(counts, size, 0.0)
            out[active] += np.stack(
                [real @ rules[some, 0], real @ rules[some, 1], size @ rules[some, 2]], axis=1
            )
            active, start = active[goes_on[:, -1]], some.stop
        return out

    def _product(
        self, u: Float[Array, " m"], z: Complex[Array, "m k"], alpha: float
    ) -> Complex[Array, "m k"]:
        """E[A exp(-u A + z T)] at several z of every u.

        Of weights taken together, ``none`` is E[e^(-u A + z T)] and ``some`` that times A: both of two groups
        follow from those of each, so the second half is folded onto the first until one group is left.
        """
        bias = self.bias / self.a.size  # shared among the factors, lest large means overflow without it
        none = np.multiply.outer(self.c + bias, z) + np.multiply.outer(self.v / 2, z * z)
        none -= np.multiply.outer(self.a, u)[:, :, None]
        np.exp(none, out=none)
        none *= 1 - alpha
        some = none * self.a[:, None, None]
        none += alpha * np.exp(z * bias)
        left = self.a.size
        while left > 1:
            half, rest = slice(left // 2), slice(left - left // 2, left)
            some[half] *= none[rest]
            some[rest] *= none[half]
            some[half] += some[rest]
            none[half] *= none[rest]
            left -= left // 2
        return some[0]
