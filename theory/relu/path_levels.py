"""Moments of the path sums that end in, and start from, the units of every hidden layer of a masked network.

For a unit u of layer j let in_u be the sum over all paths from the inputs to u of the products of the masked
absolute weights, and out_u that from u to the margin. They depend on different masks. All values are bounds
from above, equal but for rounding and for magnitudes raised to ``SMALL`` of the largest of their kind, so
that nothing underflows on the way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS, TINY, scaled
from theory.types import ReLUNetwork

SMALL = 2.0**-200  # the product of four such numbers and two squared keep probabilities is still normal


@dataclass(frozen=True)
class Paths:
    """Path sums of the units of a layer: mantissas in units of 2**exponent, their squares for covariances.

    ``largest`` is what no mask exceeds.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    largest: Float[Array, " n"]
    exponent: int


@dataclass(frozen=True)
class Grams:
    """H = E[B B'] for the product B of the masked layers up to one, in units of 2**exponent; its largest."""

    moment: Float[Array, "n n"]
    largest: Float[Array, "n n"]
    exponent: int


def sizes_of(net: ReLUNetwork) -> tuple[list[Float[Array, "r s"]], list[int]]:
    """|W_j| of the hidden layers, a bound: mantissas, zero or at least ``SMALL``, and exponents."""
    parts = [scaled(weight) for weight in net.weights[:-1]]
    sizes = [_lifted(np.abs(mantissa), mantissa != 0) for mantissa, _ in parts]
    return sizes, [int(exponent) for _, exponent in parts]


def last_layer_spread(
    rows: Float[Array, "2 h"], keep: float, dropped: float, *, power: int
) -> tuple[Float[Array, " h"], Float[Array, " h"]]:
    """Var and largest |v_u|^power, bounds, for v_u = a_u m - b_u m', m and m' 0 with probability ``dropped``.

    ``keep`` is 1 - dropped, which rounding may have made 1. The variance is a sum over pairs of outcomes, so
    nothing cancels; it is exactly 0 where nothing is masked, and only there.
    """
    a, b = np.abs(rows)
    outcomes = np.stack([np.abs(rows[0] - rows[1]), a, b, np.zeros_like(a)]) ** power
    chances = (keep**2, keep * dropped, keep * dropped, dropped**2)
    variance = np.zeros_like(a)
    for (x, p), (y, r) in itertools.combinations(zip(outcomes, chances, strict=True), 2):
        variance += p * r * (np.abs(x - y) + 8 * EPS * np.maximum(x, y)) ** 2
    random = rows.any(axis=0) & (keep > 0) & (dropped > 0)
    variance = np.where(random, np.maximum(variance, TINY), 0.0)
    possible = [x for x, p in zip(outcomes, chances, strict=True) if p > 0]
    return variance * (1 + 32 * EPS), np.max(possible, axis=0) * (1 + 8 * EPS)


def paths_below(sizes: list[Float[Array, "_ _"]], keep: Float[Array, " h"]) -> list[Paths]:
    """in_u of every hidden layer, the first one first, an identity but for rounding up."""
    n = sizes[0].shape[1]
    found = [Paths(np.ones(n), np.zeros((n, n)), np.ones(n), 0)]
    for size, k in zip(sizes, keep, strict=True):
        found.append(_through(size, found[-1], float(k)))
    return found[1:]


def paths_above(sizes: list[Float[Array, "_ _"]], keep: Float[Array, " h"], last: Paths) -> list[Paths]:
    """out_u of every hidden layer, an identity but for rounding up, the first one first; ``last`` is |v|."""
    found = [_scaled(last.mean, last.covariance, last.largest, last.exponent)]
    for size, k in zip(reversed(sizes[1:]), reversed(keep[1:]), strict=True):
        found.append(_through(size.T, found[-1], float(k)))
    return found[::-1]


def grams_below(sizes: list[Float[Array, "_ _"]], keep: Float[Array, " h"]) -> list[Grams]:
    """H of every hidden layer, the first one first, an identity but for rounding up.

    H <- k^2 |W| H |W|' + k (1-k) diag(|W|^2 diag H).
    """
    moment = largest = np.eye(sizes[0].shape[1])
    found, exponent = [], 0
    for size, k in zip(sizes, keep, strict=True):
        spread = size**2 @ np.diag(moment)
        moment = k**2 * (size @ moment @ size.T) + np.diag(k * (1.0 - k) * spread)
        largest = size @ largest @ size.T
        shift = int(scaled(largest)[1])
        largest, moment = (np.ldexp(part, -shift) for part in (largest, moment))
        largest, moment = _lifted(largest, largest > 0), _lifted(moment, moment > 0)
        exponent += shift
        found.append(Grams(moment, largest, exponent))
    return found


def _through(size: Float[Array, "r s"], paths: Paths, keep: float) -> Paths:
    """The path sums (size * M) x of path sums x."""
    spread = size**2 @ (np.diag(paths.covariance) + paths.mean**2)
    covariance = keep**2 * (size @ paths.covariance @ size.T) + np.diag(keep * (1.0 - keep) * spread)
    return _scaled(keep * (size @ paths.mean), covariance, size @ paths.largest, paths.exponent)


def _scaled(
    mean: Float[Array, " n"], covariance: Float[Array, "n n"], largest: Float[Array, " n"], exponent: int
) -> Paths:
    top, shift = scaled(largest)
    mean, support = np.ldexp(mean, -shift), mean > 0
    covariance, joint = np.ldexp(covariance, -2 * shift), covariance > 0
    return Paths(
        _lifted(mean, support),
        np.where(joint, np.maximum(covariance, SMALL**2), 0.0),
        _lifted(top, largest > 0),
        exponent + int(shift),
    )


def _lifted(values: Float[Array, "*s"], support: np.ndarray) -> Float[Array, "*s"]:
    return np.where(support, np.maximum(values, SMALL), 0.0)
