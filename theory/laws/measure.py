"""How far a bound or an identity is from failing, as a number; AssertionError where it fails."""

from __future__ import annotations

import math

import numpy as np


def at_most(truth: object, bound: object, *, slack: object = 0.0) -> float:
    """(bound + slack) / truth, the smallest over all entries; inf where the truth is not positive.

    ``slack`` is the rounding that the law allows. AssertionError unless truth <= bound + slack everywhere,
    and so if either is NaN: a law holds where the ratio is at least 1.
    """
    truth = np.asarray(truth, dtype=np.float64)
    allowed = np.asarray(bound, dtype=np.float64) + np.asarray(slack, dtype=np.float64)
    assert (truth <= allowed).all(), f"{truth} exceeds {np.asarray(bound)} (rounding {slack})"
    counts = (truth > 0) & ~np.isinf(allowed)
    with np.errstate(over="ignore"):
        ratio = np.divide(allowed, truth, out=np.full(counts.shape, math.inf), where=counts)
    return float(ratio.min(initial=math.inf))


def equal(value: object, truth: object, *, scale: object, tolerance: float) -> float:
    """|value - truth| / scale, the largest over all entries; 0 where both are the same, infinite ones too.

    ``scale`` is what rounding is relative to. AssertionError where the error is more than ``tolerance``.
    """
    value, truth = np.asarray(value, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.where(value == truth, 0.0, np.abs(value - truth) / scale)
    assert (error <= tolerance).all(), f"{value} is not {truth} (scale {scale})"
    return float(error.max(initial=0.0))
