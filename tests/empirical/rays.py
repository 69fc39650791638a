"""An independent account of where a ray leaves its class: split the ray at every kink, layer by layer."""

from __future__ import annotations

import math

import numpy as np

from theory.types import ReLUNetwork


def leaving_times(
    net: ReLUNetwork, x: np.ndarray, y: int, direction: np.ndarray, *, end: float
) -> tuple[float, float]:
    """(touch, leave): the first t in [0, end] with margin <= 0, and the infimum of t with margin < 0.

    inf where there is none. x and direction are (n,).
    """
    times = np.array([0.0, end])
    values = x + times[:, None] * direction
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        times, values = _split(times, values @ weight.T + bias)
        values = np.maximum(values, 0.0)
    scores = values @ net.weights[-1].T + net.biases[-1]
    gaps = scores[:, y : y + 1] - np.delete(scores, y, axis=1)
    times, gaps = _split(times, gaps)
    margin = gaps.min(axis=1)
    touch = times[margin <= 0]
    # Between two neighbouring times no gap changes sign, so one negative end makes the open piece negative.
    starts = [t for t, m0, m1 in zip(times, margin, margin[1:], strict=False) if min(m0, m1) < 0]
    return min(touch, default=math.inf), min(starts, default=math.inf)


def _split(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add every time between neighbours at which an entry, linear there, changes sign; exact zeros there."""
    new_times, new_values = [times[0]], [values[0]]
    for t0, t1, v0, v1 in zip(times, times[1:], values, values[1:], strict=False):
        crossing = v0 * v1 < 0
        share = np.where(crossing, v0 / np.where(crossing, v0 - v1, 1.0), np.nan)
        for s in np.unique(share[crossing]):
            between = v0 + s * (v1 - v0)
            between[share == s] = 0.0
            new_times.append(t0 + s * (t1 - t0))
            new_values.append(between)
        new_times.append(t1)
        new_values.append(v1)
    return np.array(new_times), np.array(new_values)
