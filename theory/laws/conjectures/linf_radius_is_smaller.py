"""True: the mean radius in l_inf is at most that in l_2, for every linear classifier.

A perturbation of l_2 norm r has an l_inf norm of at most r, so whoever may move r in l_2 has at least the
point that changes the decision within r in l_inf. The hunt finds no counterexample, and equality where the
weights have one non-zero entry.
"""

from theory.laws import conjecture
from theory.laws import strategies as st
from theory.linear import mean_radius


@conjecture(problem=st.linear_problems())
def linf_radius_is_smaller(problem):
    """The mean l_inf radius is at most the mean l_2 radius."""
    classifier, x, y = problem
    return mean_radius(classifier, x, y, p=float("inf")), mean_radius(classifier, x, y, p=2.0)
