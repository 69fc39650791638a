"""The right end point of a distribution from maxima of batches: reverse Weibull fits by maximum likelihood.

Maxima of large batches of bounded samples are distributed as location - scale W^(1/shape), W exponential, and
the location is the largest value that samples can take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import stats

from theory.types import InvalidInput, finite_array

# Locations tried, beyond the largest maximum in units of the spread of the maxima; the best is refined.
_STARTS = np.geomspace(1e-3, 1e3, 61)
_NEWTON_STEPS = 30
# A shape is done when Newton's step changes it by no more than this share: the next would be rounding.
_SETTLED = 1e-10
_GOLDEN_STEPS = 40
_GOLDEN = (np.sqrt(5) - 1) / 2
# Maxima that differ by less than this share of the largest are one value: nothing can be fitted.
_EQUAL = 1e-9
# A fit is poor below this p-value of its Kolmogorov-Smirnov test, the level of Weng et al. 2018.
_POOR = 0.05
# The likelihood is still rising towards smaller shapes where it is greatest at a shape this close to 1.
_RISING = 1e-6
# Bytes of the logarithms that are held at once, of all maxima beyond all locations tried.
_BYTES = 2**22
# No set of maxima tells of values this many times the largest one.
_ABSURD = 2.0


@dataclass(frozen=True)
class EndPoint:
    """Estimated end points of f sets of maxima, and the fits behind them.

    ``location`` is the fitted one where ``fitted`` is True and the largest maximum elsewhere: where the
    maxima are equal, the likelihood has no maximum of shape above 1 within reach, the location exceeds
    twice the largest maximum, or the fit is poor. ``shape``, ``scale`` and the Kolmogorov-Smirnov
    ``statistic`` and ``p_value`` are those of the best fit, NaN where the maxima are equal. The p-value
    takes the parameters as given, so it is too large rather than too small.
    """

    location: Float[Array, " f"]
    shape: Float[Array, " f"]
    scale: Float[Array, " f"]
    statistic: Float[Array, " f"]
    p_value: Float[Array, " f"]
    fitted: Bool[Array, " f"]


def end_points(maxima: Float[Array, "f b"]) -> EndPoint:
    """Maximum-likelihood end points of b maxima each (*estimate*), never below the largest maximum.

    For each location the shape and scale of greatest likelihood follow from one equation; the location is the
    best of a grid, refined by golden sections. Shapes below 1 are left out: their likelihood is unbounded.
    Raises: InvalidInput if b < 3 or a maximum is negative or not finite.
    """
    maxima = finite_array("maxima", maxima, ndim=2)
    if maxima.shape[1] < 3:
        raise InvalidInput(f"maxima has {maxima.shape[1]} values per fit; a fit of three parameters needs 3")
    if (maxima < 0).any():
        raise InvalidInput(f"maxima has a negative value {maxima.min():g}; norms are not negative")
    largest, least = maxima.max(1), maxima.min(1)
    different = np.flatnonzero(largest - least > _EQUAL * largest)
    found = np.full((5, len(maxima)), np.nan)
    rows = max(1, _BYTES // (maxima.itemsize * len(_STARTS) * maxima.shape[1]))
    for start in range(0, len(different), rows):
        some = different[start : start + rows]
        found[:, some] = _fitted(maxima[some])
    location, shape, scale, statistic, p_value = found
    fitted = np.zeros(len(maxima), dtype=bool)
    fitted[different] = (p_value >= _POOR)[different] & (location / _ABSURD <= largest)[different]
    return EndPoint(np.where(fitted, location, largest), shape, scale, statistic, p_value, fitted)


def _fitted(maxima: Float[Array, "f b"]) -> Float[Array, "5 f"]:
    """Location, shape, scale, statistic and p-value of maxima that differ; location inf without a maximum."""
    largest = maxima.max(1)
    unit = largest - maxima.min(1)
    gaps = (largest[:, None] - maxima) / unit[:, None]
    likelihood, *_ = _likelihood(gaps, np.broadcast_to(_STARTS, (len(gaps), len(_STARTS))))
    best = likelihood.argmax(1)
    inside = (best > 0) & (best < len(_STARTS) - 1)
    around = best.clip(1, len(_STARTS) - 2)
    step = _refined(gaps, np.log(_STARTS[around - 1]), np.log(_STARTS[around + 1]))
    likelihood, shape, scale = (part[:, 0] for part in _likelihood(gaps, step[:, None]))
    statistic = _distance(gaps + step[:, None], shape, scale)
    greatest = inside & np.isfinite(likelihood) & (shape > 1 + _RISING)
    with np.errstate(over="ignore"):  # infinite is beyond all that is believed
        location, scale = np.where(greatest, largest + step * unit, np.inf), scale * unit
    p_value = stats.kstwo.sf(statistic, maxima.shape[1])
    return np.stack([location, shape, scale, statistic, p_value])


def _likelihood(
    gaps: Float[Array, "f b"], steps: Float[Array, "f g"]
) -> tuple[Float[Array, "f g"], Float[Array, "f g"], Float[Array, "f g"]]:
    """Greatest log-likelihood with locations ``steps`` beyond the largest maximum, its shape and its scale.

    -inf where that shape is below 1.
    """
    logs = np.log(gaps[:, None] + steps[..., None])
    top = logs.max(2, keepdims=True)
    logs = logs - top
    mean = logs.mean(2)
    shape = 1.28 / np.maximum(logs.std(2), 1e-300)  # exact for the standard deviation of a Gumbel variable
    moving = np.ones(shape.shape, dtype=bool)  # each stops by itself: no fit hangs on the others
    for _ in range(_NEWTON_STEPS):
        powers = np.exp(shape[..., None] * logs)
        total = powers.sum(2)
        first, second = (powers * logs).sum(2) / total, (powers * logs**2).sum(2) / total
        value = first - 1 / shape - mean
        change = value / (second - first**2 + shape**-2.0)
        before, shape = shape, np.where(moving, np.clip(shape - change, shape / 2, shape * 2), shape)
        moving &= np.abs(shape - before) > _SETTLED * before
        if not moving.any():
            break
    log_scale = np.log(np.exp(shape[..., None] * logs).mean(2)) / shape
    likelihood = np.log(shape) - shape * log_scale + (shape - 1) * mean - 1 - top[..., 0]
    return np.where(shape >= 1, likelihood, -np.inf), shape, np.exp(log_scale + top[..., 0])


def _refined(
    gaps: Float[Array, "f b"], low: Float[Array, " f"], high: Float[Array, " f"]
) -> Float[Array, " f"]:
    """The step of greatest likelihood between two logarithms of steps, by golden sections."""
    for _ in range(_GOLDEN_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        tried = _likelihood(gaps, np.exp(np.stack([left, right], 1)))[0]
        better = tried[:, 0] > tried[:, 1]
        low, high = np.where(better, low, left), np.where(better, right, high)
    return np.exp((low + high) / 2)


def _distance(
    gaps: Float[Array, "f b"], shape: Float[Array, " f"], scale: Float[Array, " f"]
) -> Float[Array, " f"]:
    """Kolmogorov-Smirnov distance between the gaps below a location and the fitted distribution."""
    model = -np.expm1(-((np.sort(gaps, 1) / scale[:, None]) ** shape[:, None]))
    count = gaps.shape[1]
    above = np.arange(1, count + 1) / count - model
    below = model - np.arange(count) / count
    return np.maximum(above.max(1), below.max(1))
