"""False: the multi-class theorem on the mean radius holds without the biases.

Theorem 3.2 bounds the radius by the distance of each class mean to the average boundary, written for
(w_k - wbar).mu_k alone. A bias can move the boundary away from the means of correct inputs without changing
that number, already with two classes if one is never correct; with the terms b_k - bbar the bound holds
(``theory.linear.paper_multiclass_bound``).
"""

import numpy as np

from theory.laws import conjecture
from theory.laws import strategies as st
from theory.linear import class_statistics, mean_radius
from theory.norms import dual, norm


@conjecture(problem=st.linear_problems("multiclass"), p=st.attack_norms())
def paper_bound_needs_no_biases(problem, p):
    """R_p <= sum_k pi_k t_k (w_k - wbar).mu_k / ||w_k - wbar||_q, whatever the biases."""
    classifier, x, y = problem
    stats = class_statistics(classifier, x, y)
    offset = classifier.weight - classifier.weight.mean(axis=0)
    size = norm(offset, p=dual(p))
    gain = (offset * stats.mean).sum(axis=1)
    bound = np.divide(gain, size, out=np.full(len(size), np.inf), where=size > 1e-9 * size.max())
    rounding = 1e-9 * (1 + np.abs(x).max())
    used = stats.mass > 0
    return mean_radius(classifier, x, y, p=p), stats.mass[used] @ bound[used] + rounding
