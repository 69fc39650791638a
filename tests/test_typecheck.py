"""The run-time type checks are on: a wrong shape or dtype does not reach the code under test."""

import jaxtyping
import numpy as np
import pytest

from empirical.claims import trends
from theory.norms import norm


def test_wrong_shapes_and_dtypes_are_caught():
    with pytest.raises(jaxtyping.TypeCheckError):
        trends.holm(np.zeros((2, 2)))
    with pytest.raises(jaxtyping.TypeCheckError):
        norm(np.zeros((1, 3), dtype=bool), p=2)
