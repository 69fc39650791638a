"""Bounds on the expected sum of the k largest of random variables, whatever their dependence.

The sum of the k largest of x_1, ..., x_n is min_t k t + sum_u max(x_u - t, 0) (the dual of a linear program),
so E of it is at most inf_t k t + sum_u E max(X_u - t, 0), for any t. The second term needs each variable by
itself: 0 <= X_u <= b_u, its mean, and where it is known its variance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS, outward, raised, scaled

# The threshold is sought in [0, max b], so many parts at once, so often: to 2^-72. Any other is a bound too.
PARTS, ROUNDS = 16, 18
# Below this share of the largest b^2 a variance counts as this much, lest it underflow.
LEAST_VARIANCE = 2.0**-900


def knapsack_bound(
    worth: Float[Array, "*rows n"], share: Float[Array, "..."], count: int
) -> Float[Array, "*rows"]:
    """E sum of the ``count`` largest of X_u in [0, worth_u] with E X_u <= share_u worth_u, a bound.

    The smallest that means and ranges allow: a fractional knapsack of capacity ``count``, filled with the
    largest worth first, share_u of unit u. With share = 1 it is the sum of the largest worths; with count >=
    n the sum of the means. ``share`` broadcasts against ``worth``.

    Reference: Madansky 1959 (E max(X - t, 0) <= share max(worth - t, 0)); this project for the sum.
    """
    slack = worth.shape[-1] + 8
    share = np.broadcast_to(np.minimum(outward(share, roundings=2), 1.0), worth.shape)
    if count < worth.shape[-1]:
        order = np.argsort(-worth, axis=-1)
        worth, share = np.take_along_axis(worth, order, -1), np.take_along_axis(share, order, -1)
        before = np.cumsum(share, axis=-1) - share
        share = np.clip(count * (1 + slack * EPS) - before, 0.0, share)
    return outward(np.asarray((worth * share).sum(axis=-1)), roundings=slack + 4)


def scarf_bound(
    mean: Float[Array, "*batch n"],
    variance: Float[Array, "*batch n"],
    largest: Float[Array, "*batch n"],
    count: int,
) -> Float[Array, "*batch"]:
    """E sum of the ``count`` largest of X_u in [0, largest_u], a bound by upper bounds of mean and variance.

    For each t the smallest that these allow, and convex in t (:func:`excess`), so the slope finds the best t.

    Reference: Scarf 1958; Cox 1991 (with a range); this project for the sum.
    """
    top, exponent = scaled(largest, axis=-1)
    top = raised(top, largest > 0)
    with np.errstate(under="ignore"):
        centre = np.minimum(raised(np.ldexp(mean, -exponent), mean > 0), top)
        spread = np.ldexp(variance, -2 * exponent)
    spread = np.where(variance > 0, np.maximum(spread, LEAST_VARIANCE), 0.0)
    low, width = np.zeros_like(centre[..., :1]), top.max(axis=-1, keepdims=True)
    found = [low, width]
    inner = np.arange(1, PARTS).reshape(-1, *(1,) * low.ndim) / PARTS
    for _ in range(ROUNDS):
        slopes = count + excess(centre, spread, top, low + width * inner)[1].sum(axis=-1, keepdims=True)
        low, width = low + width * ((slopes < 0).sum(axis=0) / PARTS), width / PARTS
    found += [low, low + width]
    values = [count * t[..., 0] + excess(centre, spread, top, t)[0].sum(axis=-1) for t in found]
    best = outward(np.asarray(np.min(values, axis=0)), roundings=mean.shape[-1] + 24)
    return np.asarray(np.ldexp(best, exponent[..., 0]))


def excess(
    mean: Float[Array, "*batch n"],
    variance: Float[Array, "*batch n"],
    largest: Float[Array, "*batch n"],
    threshold: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """E max(X - t, 0) of any X in [0, b] with this mean and no more variance, a bound; its slope in t.

    A quadratic above max(x - t, 0) on [0, b] gives each case, with m = mean, s = variance and r = b - m:
    m (1 - t m / (s + m^2)) where 2 m t <= s + m^2; (b - t) s / (s + r^2) where 2 r (b - t) < s + r^2;
    (sqrt(s + (t - m)^2) - (t - m)) / 2 between (Scarf). Two points attain each. It is convex in t, and does
    not decrease in m, s or b.
    """
    rest = largest - mean
    variance = np.minimum(variance, mean * rest)
    below, above = variance + mean**2, variance + rest**2
    gap = threshold - mean
    root = np.sqrt(variance + gap**2)
    positive = np.where(gap + root > 0, gap + root, 1.0)
    value = np.where(gap > 0, variance / (2 * positive), (root - gap) / 2)
    slope = -np.where(root > 0, value / np.where(root > 0, root, 1.0), 0.5)
    share = np.divide(variance, above, out=np.zeros_like(above), where=above > 0)
    upper = 2 * rest * (largest - threshold) < above
    value = np.where(upper, (largest - threshold) * share, value)
    slope = np.where(upper, -share, slope)
    share = np.divide(mean, below, out=np.zeros_like(below), where=below > 0)
    lower = 2 * mean * threshold <= below
    value = np.where(lower, mean * (1.0 - threshold * share), value)
    slope = np.where(lower, -mean * share, slope)
    beyond = threshold >= largest
    return np.where(beyond, 0.0, value), np.where(beyond, 0.0, slope)
