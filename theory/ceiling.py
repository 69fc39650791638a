"""What no classifier can pass: the largest mean radius that the positions of the data allow."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from theory.types import InvalidInput, check_labels, check_p, finite_array


def universal_ceiling(x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float) -> float:
    """Universal ceiling, bound: no classifier that is correct on all of x has a larger mean radius there.

    On the segment between two correct points of different labels the decision changes, so
    r_i + r_j <= D_ij = ||x_i - x_j||_p. The largest mean of such r >= 0 is a linear program; its dual is a
    minimum fractional edge cover, and a fractional cover of a graph costs half of an integral one of its
    bipartite double cover. A cheapest cover matches some vertices and covers each other one by its cheapest
    edge m(v); pairing those others arbitrarily gives a perfect matching for the costs
    min(D_uv, m(u) + m(v)), and such a matching is a cover, so the assignment solves it exactly.
    Holds for linear models and deep nets, dense or sparse, with any number of classes; a smaller cap on the
    radii changes nothing. x is (m, n), y is (m,) of non-negative labels; memory is O(m^2), time O(m^3).
    Raises: InvalidInput for shapes that disagree, NaN, a single class, or unless p is 2 or inf.
    Source: this project; theory/symbolic.py::prove_triangle_ceiling.
    """
    check_p(p)
    x = finite_array("x", x, ndim=2)
    y = check_labels("y", y, n=x.shape[0], classes=np.iinfo(np.int64).max)
    if (y == y[0]).all():
        raise InvalidInput(f"y holds only the label {y[0]}; a decision boundary needs two classes")
    _, exponent = np.frexp(np.abs(x).max())
    scaled = np.ldexp(x, -exponent)  # exact, and keeps the squares away from overflow
    cost = cdist(scaled, scaled, "euclidean" if p == 2 else "chebyshev")
    cost[y[:, None] == y] = np.inf
    cheapest = cost.min(axis=1)
    alone = cheapest[:, None] + cheapest
    # The same assignment by what it saves over covering alone: many entries are 0, so it is found sooner.
    best = linear_sum_assignment(np.maximum(alone - cost, 0.0), maximize=True)
    matched = np.minimum(cost[best], alone[best])
    return float(np.ldexp(matched.mean() / 2, exponent))


def mean_radius_ceiling(
    x: Float[Array, "m n"], y: Int[Array, " m"], correct: Bool[Array, " m"], *, p: float
) -> float:
    """Ceiling at a given correct set, bound: the mean radius over all of x, misclassified points counted 0.

    The share of correct points times their ``universal_ceiling``; 0 if none is correct, inf if all correct
    ones have one label. A classifier that is wrong somewhere can exceed the universal ceiling of the whole
    of x, for each mistake frees its neighbours: use this one with its own correct set.
    Raises: InvalidInput as ``universal_ceiling``, or if ``correct`` is not one boolean per point.
    Source: this project.
    """
    check_p(p)
    x = finite_array("x", x, ndim=2)
    y = check_labels("y", y, n=x.shape[0], classes=np.iinfo(np.int64).max)
    if correct.shape != y.shape:
        raise InvalidInput(f"correct has shape {correct.shape}; expected {y.shape}, one flag per point")
    if not correct.any():
        return 0.0
    if np.unique(y[correct]).size == 1:
        return np.inf
    return float(correct.mean() * universal_ceiling(x[correct], y[correct], p=p))
