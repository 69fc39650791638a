"""The run-time type checks are on: a wrong shape or dtype does not reach the code under test."""

import jaxtyping
import numpy as np
import pytest

from empirical.claims import verdicts
from tests import typecheck
from theory.norms import norm


@pytest.mark.parametrize("test", ["one test", "the next"])
def test_wrong_shapes_and_dtypes_are_caught_in_the_first_calls_of_each_test(test):
    with pytest.raises(jaxtyping.TypeCheckError):
        verdicts.t_interval(np.zeros((2, 2)))
    for _ in range(typecheck.CALLS):
        with pytest.raises(jaxtyping.TypeCheckError):
            norm(np.zeros((1, 3), dtype=bool), p=2)
    assert norm(np.zeros((1, 3), dtype=bool), p=2) == 0  # from now on as for a user
