"""Laws of averages over Bernoulli masks, each with its own exact route to the number, in multiple precision.

Taking the formula as an argument lets a test show that each law rejects a wrong formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import mpmath
import numpy as np

from theory.linear import GaussianClasses, gaussian_mean_radius
from theory.types import BinaryLinear

DIGITS = 40
USEFUL = 2e-12  # an error estimate may be at most this share of the average without signs
NOTHING = 1e-300  # what float64 may round to 0
FLOAT64 = 1e-13  # sums of up to 2^10 masks in float64, relative to the sum
RARE = 1e-26  # probability of binomial counts that are left out


def _within_estimate(found: float, error: float, exact: Any, *, scale: Any) -> float:
    """The stated error is an upper limit of the true one, nothing added, and small enough to be useful."""
    missed = abs(mpmath.mpf(found) - exact)
    assert missed <= error, f"{found} misses {exact} by {float(missed)}, more than the stated {error}"
    assert error <= USEFUL * scale + NOTHING, (
        f"the stated error {error} of {found} is vague (scale {float(scale)})"
    )
    return float(missed / scale) if scale else 0.0


def averages_all_masks(
    candidate: Callable, weight: np.ndarray, gain: np.ndarray, alpha: float, *, p: float
) -> float:
    """The average equals the sum over all 2^n masks in 40 digits, within the stated error."""
    found = candidate(weight, gain, np.array([alpha]), p=p)
    with mpmath.workdps(DIGITS):
        removed = mpmath.mpf(alpha)
        sums = [(mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0))]  # chance, size, dot, |dot|
        for w, g in zip(weight.tolist(), gain.tolist(), strict=True):
            w, g = mpmath.mpf(w), mpmath.mpf(g)
            size = abs(w) if p == math.inf else w * w
            kept = [(c * (1 - removed), a + size, d + w * g, b + abs(w * g)) for c, a, d, b in sums]
            sums = [(c * removed, a, d, b) for c, a, d, b in sums] + kept
        root = mpmath.sqrt if p == 2 else mpmath.mpf
        exact = mpmath.fsum(c * d / root(a) for c, a, d, _ in sums if a > 0)
        scale = mpmath.fsum(c * b / root(a) for c, a, _, b in sums if a > 0)
        return _within_estimate(found.value[0], found.error[0], exact, scale=scale)


def binomial(n: int, alpha: float) -> Iterator[tuple[int, Any]]:
    """How many of n weights stay, with its probability; by ratios of neighbours, from the likeliest count."""
    removed = mpmath.mpf(alpha)
    ratio = (1 - removed) / removed
    likeliest = min(n, int((n + 1) * (1 - removed)))
    top = mpmath.binomial(n, likeliest) * (1 - removed) ** likeliest * removed ** (n - likeliest)
    chance, k = top, likeliest
    while k <= n and chance > RARE:
        yield k, chance
        chance, k = chance * ratio * (n - k) / (k + 1), k + 1
    chance, k = top * likeliest / (n - likeliest + 1) / ratio, likeliest - 1
    while k >= 0 and chance > RARE:
        yield k, chance
        chance, k = chance * k / (n - k + 1) / ratio, k - 1


def averages_two_sizes(
    candidate: Callable,
    counts: tuple[int, int],
    weights: tuple[float, float],
    gains: tuple[float, float],
    alpha: float,
    *,
    p: float,
) -> float:
    """With counts[0] weights of one value and counts[1] of another, the average is a double binomial sum."""
    weight, gain = np.repeat(weights, counts), np.repeat(gains, counts)
    found = candidate(weight, gain, np.array([alpha]), p=p)
    with mpmath.workdps(DIGITS):
        (w, v), (g, h) = map(mpmath.mpf, weights), map(mpmath.mpf, gains)
        exact = scale = mpmath.mpf(0)
        for (k, chance), (j, other) in product(binomial(counts[0], alpha), list(binomial(counts[1], alpha))):
            if k + j:
                size = k * abs(w) + j * abs(v) if p == math.inf else mpmath.sqrt(k * w * w + j * v * v)
                exact += chance * other * (k * w * g + j * v * h) / size
                scale += chance * other * (k * abs(w * g) + j * abs(v * h)) / size
        return _within_estimate(found.value[0], found.error[0], exact, scale=scale)


def averages_gaussian_masks(
    candidate: Callable, clf: BinaryLinear, data: GaussianClasses, alpha: float, *, p: float
) -> float:
    """The average equals the sum of the closed form of every masked classifier, within the stated error.

    The error returned is relative to the stated one: far classes leave averages much smaller than it.
    """
    found = candidate(clf, data, np.array([alpha]), p=p)
    exact = 0.0
    for mask in product([0.0, 1.0], repeat=clf.weight.size):
        masked, kept = clf.weight * mask, int(sum(mask))
        chance = (1 - alpha) ** kept * alpha ** (clf.weight.size - kept)
        if masked.any():
            exact += chance * gaussian_mean_radius(BinaryLinear(masked, clf.bias), data, p=p)
    missed = abs(found.value[0] - exact)
    allowed = found.error[0] + FLOAT64 * exact
    assert missed <= allowed, f"{found} misses {exact} by {missed}"
    return missed / allowed if allowed > 0 else 0.0
