"""Lipschitz constants of the logit differences of a ReLU network, in the dual of the attack norm.

The constants of g_i - g_k are *bounds* in exact arithmetic **and** in floating point. Three rules keep
them so:

- every matrix is carried as mantissa * 2**exponent, so no product overflows or underflows on the way;
- non-zero magnitudes are raised to at least ``FLOOR`` of the largest one, which only enlarges a bound that is
  monotone in them, and keeps zero the mark of a true zero (a dead path has the constant 0, not a tiny one);
- the last step rounds up past every rounding made so far (:func:`outward`); what does not fit is inf.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.types import InvalidInput, ReLUNetwork, check_inputs

EPS = float(np.finfo(np.float64).eps)  # twice the unit roundoff
SMALLEST = float(np.finfo(float).smallest_subnormal)
TINY = float(np.finfo(np.float64).tiny)  # the smallest normal number
# A product of three magnitudes in [FLOOR, 1] and a squared keep probability (at least 2**-106) is still
# normal.
FLOOR = 2.0**-300
# LAPACK Users' Guide, section 4.9: a computed singular value is off by at most p(m, n) eps sigma_1 with p "a
# modestly growing function"; in practice p is below 10, so m + n times this constant is generous.
SVD_ROUNDINGS = 16


def outward(bound: Float[Array, "*s"], *, roundings: int) -> Float[Array, "*s"]:
    """Round a non-negative *bound* up past ``roundings`` floating-point operations.

    Sums and products of non-negative numbers that take N roundings return at least (1 - u)^N times the exact
    value, u = eps/2 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). The factor
    1 + (N + 4) eps undoes that and covers its own two roundings while N eps < 1/4. Below the normal numbers a
    rounding costs up to half the smallest float instead, of which as many are added; 0 stays 0.
    """
    subnormal = np.where(bound > 0, (roundings + 4) * SMALLEST, 0.0)
    return np.asarray(bound * (1.0 + (roundings + 4) * EPS) + subnormal)


def scaled(
    values: Float[Array, "*s"], *, axis: int | None = None
) -> tuple[Float[Array, "*s"], Int[Array, "*t"]]:
    """Split values = mantissa * 2**exponent, an identity, with the largest |mantissa| in [1/2, 1).

    One exponent for the whole array, or one per slice along ``axis`` (kept as length 1). Entries below
    2**-1021 of the largest one lose bits; see ``raised``.
    """
    largest = np.abs(values).max(axis=axis, keepdims=True)
    exponent = np.frexp(largest)[1]
    return np.ldexp(values, -exponent), exponent if axis is not None else exponent.reshape(())


def raised(magnitude: Float[Array, "*s"], support: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """Raise the magnitudes on ``support`` to at least FLOOR, a bound on each; the others are exactly 0."""
    return np.where(support, np.maximum(magnitude, FLOOR), 0.0)


def magnitudes(weight: Float[Array, "r s"]) -> tuple[Float[Array, "r s"], Int[Array, ""]]:
    """|weight| <= mantissa * 2**exponent, a bound; equal for entries above FLOOR times the largest."""
    mantissa, exponent = scaled(weight)
    return raised(np.abs(mantissa), weight != 0), exponent


def product(
    factors: Iterable[np.ndarray | np.floating], exponent: np.ndarray | np.integer, *, roundings: int
) -> Float[Array, "*s"]:
    """Product of non-negative factors times 2**exponent, a bound past ``roundings`` earlier operations.

    Factors and exponent broadcast against each other. The value is inf where it exceeds the largest float,
    and the smallest positive float, not 0, where it falls below that.
    """
    mantissa = np.ones(())
    for factor in factors:
        mantissa, carry = np.frexp(mantissa * factor)
        exponent = exponent + carry
        roundings += 1
    mantissa = outward(np.asarray(mantissa), roundings=roundings)
    with np.errstate(over="ignore", under="ignore"):
        value = np.ldexp(mantissa, exponent)
    return np.where((mantissa > 0) & (value < TINY), np.nextafter(value, math.inf), value)


def spectral_norm(mantissa: Float[Array, "*several r s"]) -> Float[Array, "*several"]:
    """Largest singular value of a matrix with entries of order 1, a bound that includes LAPACK's error."""
    value = np.linalg.norm(mantissa, ord=2, axis=(-2, -1))
    return outward(np.asarray(value), roundings=SVD_ROUNDINGS * sum(mantissa.shape[-2:]))


def row_sum_norm(mantissa: Float[Array, "r s"]) -> Float[Array, ""]:
    """Largest absolute row sum r, a bound: ||W' u||_1 <= r ||u||_1 for weights stored (out, in)."""
    return outward(np.asarray(np.abs(mantissa).sum(axis=1).max()), roundings=mantissa.shape[1])


def norm_product(net: ReLUNetwork, *, p: float) -> Float[Array, "c c"]:
    """Norm-product constants, a bound: ||w_i - w_k||_q prod_j ||W_j||, for every pair of classes (i, k).

    ||W_j|| is the spectral norm for p = 2 (q = 2) and, for p = inf (q = 1), the largest l_1 norm of the
    weights into one unit. Entry (i, k) bounds ||grad (g_i - g_k)||_q on all of R^n; the diagonal is 0.

    Raises: InvalidInput unless p is 2 or inf.
    Reference: the paper, section 3.2 (its constants c_1 and c_2 in this form); Szegedy et al. 2014,
      section 4.3.
    """
    size = spectral_norm if dual(p) == 2 else row_sum_norm
    parts = [scaled(weight) for weight in net.weights[:-1]]
    factors = [size(mantissa) for mantissa, _ in parts]
    exponent = sum((shift for _, shift in parts), start=np.zeros((), dtype=np.int32))
    table = np.empty((net.classes, net.classes))
    for i in range(net.classes):
        rows, shifts = _differences(net, i)
        table[i] = product(
            [norm(rows, p=dual(p)), *factors], shifts[:, 0] + exponent, roundings=rows.shape[1] + 5
        )
    return table


def path_norm(net: ReLUNetwork, *, p: float) -> Float[Array, "c c"]:
    """Path-norm constants, a bound: || |W_1|' ... |W_{d-1}|' |w_i - w_k| ||_q for every pair (i, k).

    Holds for p = 2 (q = 2) and p = inf (q = 1), because every activation pattern bounds the gradient
    entrywise by the sum over all paths. Equal to the gradient norm where all weights and units are positive.

    Raises: InvalidInput unless p is 2 or inf.
    Reference: Neyshabur, Tomioka, Srebro 2015 (path norms); this project for the dual-norm form.
    """
    q = dual(p)
    table = np.empty((net.classes, net.classes))
    for i in range(net.classes):
        paths, exponents, roundings = path_sums(net, *_differences(net, i))
        table[i] = product([norm(paths, p=q)], exponents[:, 0], roundings=roundings + paths.shape[1] + 5)
    return table


def lipschitz_constants(net: ReLUNetwork, *, p: float) -> Float[Array, "c c"]:
    """Global Lipschitz constants of g_i - g_k in l_p, a bound: the smaller of norm product and path norm.

    For p = inf also sqrt(n) times the norm product in l_2, as ||.||_1 <= sqrt(n) ||.||_2 on n inputs.

    Raises: InvalidInput unless p is 2 or inf.
    """
    smallest = np.minimum(norm_product(net, p=p), path_norm(net, p=p))
    if dual(p) == 2:
        return smallest
    return np.minimum(smallest, l1_from_l2(norm_product(net, p=2.0), width=net.weights[0].shape[1]))


def l1_from_l2(sizes: Float[Array, "*s"], *, width: int) -> Float[Array, "*s"]:
    """sqrt(width) times bounds of l_2 norms, a bound of the l_1 norms of vectors with ``width`` entries."""
    with np.errstate(over="ignore"):
        return np.asarray(sizes * (math.sqrt(width) * (1 + 4 * EPS)) + np.where(sizes > 0, 5e-324, 0.0))


def path_sums(
    net: ReLUNetwork, rows: Float[Array, "r h"], exponents: Int[Array, "r 1"]
) -> tuple[Float[Array, "r n"], Int[Array, "r 1"], int]:
    """Path sums rows |W_{d-1}| ... |W_1|, a bound entry by entry: mantissa, exponent and roundings.

    ``rows`` are non-negative with largest entry at most 1 and non-zero entries at least FLOOR; one
    exponent each.
    """
    roundings = 1  # of the rows themselves
    for weight in reversed(net.weights[:-1]):
        mantissa, shift = magnitudes(weight)
        rows = rows @ mantissa
        support = rows > 0  # nothing underflows, so a zero is a true zero
        rows, carry = scaled(rows, axis=1)
        rows = raised(rows, support)
        exponents = exponents + shift + carry
        roundings += mantissa.shape[0] + 1
    return rows, exponents, roundings


def local_gradient(net: ReLUNetwork, x: Float[Array, "m n"]) -> Float[Array, "m c n"]:
    """Gradient of every logit at every row of ``x``, an identity on the open linear region that holds it.

    A unit counts as active where its pre-activation is positive; on the boundary of two regions this is
    the gradient of one of them, or of neither, and bounds nothing.

    Raises: InvalidInput for NaN, infinity or a width that disagrees.
    """
    return _pull_back(net, x, net.weights[-1])


def gradient_norms(
    net: ReLUNetwork, x: Float[Array, "m n"], pairs: Int[Array, "k 2"], *, p: float
) -> Float[Array, "m k"]:
    """||grad (g_i - g_j)(x)||_q for the class pairs (i, j) asked for, an identity on the linear region of x.

    Memory is that of an (m, k, n) array; give a subset of rows or pairs to limit it.

    Raises: InvalidInput for p other than 2 and inf, for bad ``x``, or for a class outside [0, c).
    """
    q = dual(p)
    if pairs.size and not (0 <= pairs.min() and pairs.max() < net.classes):
        raise InvalidInput(
            f"pairs holds {pairs.min()}..{pairs.max()}; classes must lie in [0, {net.classes})"
        )
    last = net.weights[-1]
    return norm(_pull_back(net, x, last[pairs[:, 0]] - last[pairs[:, 1]]), p=q)


def _pull_back(net: ReLUNetwork, x: Float[Array, "m n"], rows: Float[Array, "k h"]) -> Float[Array, "m k n"]:
    """rows D_{d-1}(x) W_{d-1} ... D_1(x) W_1 for every row of x."""
    hidden = check_inputs(x, width=net.weights[0].shape[1])
    active = []
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        pre_activation = hidden @ weight.T + bias
        active.append(pre_activation > 0)
        hidden = np.maximum(pre_activation, 0.0)
    gradient = np.broadcast_to(rows, (len(hidden), *rows.shape))
    for weight, on in zip(reversed(net.weights[:-1]), reversed(active), strict=True):
        gradient = (gradient * on[:, None, :]) @ weight
    return np.ascontiguousarray(gradient)


def _differences(net: ReLUNetwork, i: int) -> tuple[Float[Array, "c h"], Int[Array, "c 1"]]:
    """|w_i - w_k| for every class k, as raised mantissas with one exponent per row."""
    last = net.weights[-1]
    mantissa, exponent = scaled(last)
    # Scaled first, so that the difference of two huge weights cannot overflow.
    rows, shifts = scaled(np.abs(mantissa[i] - mantissa), axis=1)
    return raised(rows, last[i] != last), shifts + exponent
