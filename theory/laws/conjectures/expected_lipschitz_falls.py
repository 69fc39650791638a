"""False: random masks of the hidden layer never raise the expected Lipschitz constant.

The theorem on random masks bounds E[L] by c (1 - eta(alpha)), which falls with the sparsity alpha; so E[L]
itself is easily believed to fall. It need not, even with the last layer unmasked as in the theorem: two
units whose gradients partly cancel on the pattern with both active add up once a mask removes the cancelling
entries. Here L is the largest gradient norm over all activation patterns, and E[L] the sum over all masks.
"""

import numpy as np
from hypothesis.strategies import floats

from theory.laws import conjecture
from theory.laws import strategies as st
from theory.laws.relu import expected_supremum
from theory.types import ReLUNetwork


@conjecture(hidden=st.arrays((2, 2)), v=st.arrays((2,)), alpha=floats(0, 0.5), p=st.attack_norms())
def expected_lipschitz_falls(hidden, v, alpha, p):
    """E[L] with masks of sparsity alpha on the hidden layer is at most L without masks."""
    net = ReLUNetwork((hidden, np.stack([v, 0 * v])), (np.zeros(2), np.zeros(2)))
    masked, dense = np.array([alpha, 0.0]), np.zeros(2)
    return expected_supremum(net, masked, (0, 1), p=p), expected_supremum(net, dense, (0, 1), p=p)
