"""Attack norms and their duals."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.types import check_p


def dual(p: float) -> float:
    """The exponent q with 1/p + 1/q = 1, an identity: 2 for p = 2, and 1 for p = inf.

    Raises: InvalidInput unless p is 2 or inf.
    """
    return 2.0 if check_p(p) == 2 else 1.0


def norm(v: Float[Array, "*batch n"], *, p: float) -> Float[Array, "*batch"]:
    """l_p norm over the last axis, an identity; p in {1, 2, inf}, scaled against over- and underflow."""
    absolute = np.asarray(np.abs(v))
    largest = np.asarray(absolute.max(axis=-1))
    if p == math.inf:
        return largest
    unit = np.where((largest > 0) & (largest < math.inf), largest, 1.0)
    with np.errstate(over="ignore"):
        scaled = absolute / unit[..., None]
        total = scaled.sum(axis=-1) if p == 1 else np.sqrt((scaled * scaled).sum(axis=-1))
        return np.asarray(total * unit)
