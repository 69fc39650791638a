"""What no classifier can pass: the largest mean radius that the positions of the data allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from theory.norms import norm
from theory.relu.lipschitz import outward
from theory.types import InvalidInput, check_labels, check_p, finite_array

# More than the relative rounding of a distance between points of up to a million features.
_ROUNDED_UP = 1 + 1e-9
_SQUARES_LOST = 1e-140  # a distance below this has squares that underflow
_ROUNDED_AWAY = 2.0**-1000  # a distance below this, of at most a million features, has lost digits or all


def universal_ceiling(x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float) -> float:
    """Universal ceiling, bound: no classifier that is correct on all of x has a larger mean radius there.

    On the segment between two correct points of different labels the decision changes, so
    r_i + r_j <= D_ij = ||x_i - x_j||_p. The largest mean of such r >= 0 is a linear program; its dual is a
    minimum fractional edge cover, and a fractional cover of a graph costs half of an integral one of its
    bipartite double cover. A cheapest cover matches some vertices and covers each other one by its cheapest
    edge m(v); pairing those others arbitrarily gives a perfect matching for the costs
    min(D_uv, m(u) + m(v)), and such a matching is a cover, so the assignment solves it exactly.
    Holds for linear models and deep nets, dense or sparse, with any number of classes; a smaller cap on the
    radii changes nothing. A distance below 2^-1000 of the largest feature counts as that much. x is (m, n), y
    is (m,) of non-negative labels; memory is O(m^2), time O(m^3); ``blockwise_ceiling`` bounds larger sets.
    Raises: InvalidInput for shapes that disagree, NaN, a single class, or unless p is 2 or inf.
    Source: this project; theory/symbolic.py::prove_triangle_ceiling.
    """
    x, y, exponent = _checked(x, y, p=p)
    cost = _opponents(x, x, y, y, p=p, exponent=exponent)
    return _unscaled(_cheapest_cover(cost, cost.min(axis=1)) / (2 * len(y)), exponent, terms=sum(x.shape))


def blockwise_ceiling(x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float, block: int = 1000) -> float:
    """Universal ceiling by blocks, bound: never below ``universal_ceiling``, for sets too large for it.

    The constraints r_i + r_j <= D_ij are kept within blocks of at most ``block`` points, and with them
    r_i <= min_j D_ij over all points, which they imply. Fewer constraints can only raise the largest mean,
    so the value is a ceiling of every classifier that is correct on all of x. Blocks are halves of halves
    along the widest feature, so that near points stay together. Memory O(m block), time O(m^2 n + m block^2).
    Raises: InvalidInput as ``universal_ceiling``, or unless block >= 2.
    Source: this project.
    """
    if not block >= 2:
        raise InvalidInput(f"block is {block!r}; pass the number of points to match at a time, at least 2")
    x, y, exponent = _checked(x, y, p=p)
    total = 0.0
    for mine in _halves(np.ldexp(x, -exponent), block):
        cost = _opponents(x[mine], x, y[mine], y, p=p, exponent=exponent)
        total += _cheapest_cover(cost[:, mine], cost.min(axis=1))
    return _unscaled(total / (2 * len(y)), exponent, terms=sum(x.shape))


def _halves(x: Float[Array, "m n"], block: int) -> Iterator[Int[Array, " _"]]:
    """The rows of x in blocks of at most so many: halves of halves along the widest feature."""
    waiting = [np.arange(len(x))]
    while waiting:
        mine = waiting.pop()
        if mine.size <= block:
            yield mine
            continue
        widest = np.ptp(x[mine], axis=0).argmax()
        ranked = mine[np.argsort(x[mine, widest], kind="stable")]
        waiting += [ranked[: mine.size // 2], ranked[mine.size // 2 :]]


def _checked(x: object, y: object, *, p: float) -> tuple[Array, Array, int]:
    """Inputs and labels, and the power of two over which no square of an input overflows."""
    check_p(p)
    points = finite_array("x", x, ndim=2)
    labels = check_labels("y", y, n=points.shape[0], classes=np.iinfo(np.int64).max)
    if (labels == labels[0]).all():
        raise InvalidInput(f"y holds only the label {labels[0]}; a decision boundary needs two classes")
    return points, labels, int(np.frexp(np.abs(points).max())[1])


def _unscaled(mean: float, exponent: int, *, terms: int) -> float:
    """mean times 2^exponent, rounded up past what its distances and sums of so many terms have lost."""
    with np.errstate(over="ignore"):  # a mean beyond the largest float is rightly inf
        above = np.ldexp(outward(np.asarray(mean), roundings=terms + 16), exponent)
        return float(outward(np.asarray(above), roundings=1))


def _opponents(
    x: Float[Array, "k n"],
    other: Float[Array, "m n"],
    y: Int[Array, " k"],
    labels: Int[Array, " m"],
    *,
    p: float,
    exponent: int = 0,
) -> Float[Array, "k m"]:
    """l_p distances in units of 2^exponent, inf between points of one label; of others never rounded to 0."""
    mine, theirs = np.ldexp(x, -exponent), np.ldexp(other, -exponent)
    cost = cdist(mine, theirs, "euclidean" if p == 2 else "chebyshev")
    cost[y[:, None] == labels] = np.inf
    near, to = np.nonzero(cost < _SQUARES_LOST)
    apart = (x[near] != other[to]).any(axis=1)
    cost[near, to] = np.where(apart, np.maximum(norm(mine[near] - theirs[to], p=p), _ROUNDED_AWAY), 0.0)
    return cost


def _cheapest_cover(cost: Float[Array, "k k"], cheapest: Float[Array, " k"]) -> float:
    """Cost of the cheapest cover of two copies of the points, each alone at ``cheapest`` or in pairs."""
    alone = cheapest[:, None] + cheapest
    # The same assignment by what it saves over covering alone: many entries are 0, so it is found sooner.
    best = linear_sum_assignment(np.maximum(alone - cost, 0.0), maximize=True)
    return float(np.minimum(cost[best], alone[best]).sum())


def mean_radius_ceiling(
    x: Float[Array, "m n"], y: Int[Array, " m"], correct: Bool[Array, " m"], *, p: float, block: int = 2000
) -> float:
    """Ceiling at a given correct set, bound: the mean radius over all of x, misclassified points counted 0.

    The share of correct points times their ``universal_ceiling``, of more than ``block`` points their
    ``blockwise_ceiling``; 0 if none is correct, inf if all correct ones have one label. A classifier that is
    wrong somewhere can exceed the universal ceiling of the whole of x, for each mistake frees its neighbours:
    use this one with its own correct set.
    Raises: InvalidInput as ``universal_ceiling``, or if ``correct`` is not one boolean per point.
    Source: this project.
    """
    check_p(p)
    x = finite_array("x", x, ndim=2)
    y = check_labels("y", y, n=x.shape[0], classes=np.iinfo(np.int64).max)
    correct = _check_flags(correct, len(y))
    if not correct.any():
        return 0.0
    if np.unique(y[correct]).size == 1:
        return np.inf
    ceiling = correct.mean() * blockwise_ceiling(x[correct], y[correct], p=p, block=block)
    return float(outward(np.asarray(ceiling), roundings=4))


def _check_flags(correct: object, points: int) -> Bool[Array, " m"]:
    flags = np.asarray(correct)
    if flags.shape != (points,) or flags.dtype != bool:
        raise InvalidInput(
            f"correct has shape {flags.shape}; expected ({points},), one flag per point, of booleans "
            f"and not of {flags.dtype}"
        )
    return flags


def robust_accuracy_ceiling(
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    correct: Bool[Array, " m"],
    radii: Float[Array, " a"],
    *,
    p: float,
    block: int = 2000,
) -> Float[Array, " a"]:
    """Ceiling of P(rho_p > r) at a given correct set, bound: no classifier that is right there passes it.

    Two correct points of different labels at a distance of at most 2 r cannot both have a radius above r, so
    the points that have are independent in the graph of such pairs. Their number is at most that of all
    correct points less a smallest fractional vertex cover, which is half a largest matching of the graph's
    bipartite double cover. Misclassified points count 0. Of more than ``block`` points, pairs within blocks
    alone count: fewer edges only raise the ceiling. The value is the float nearest to that share, as measured
    shares are.
    Raises: InvalidInput as ``mean_radius_ceiling``, or for a radius that is negative or NaN.
    Source: this project; Bhagoji, Cullina, Mittal 2019 for two classes.
    """
    check_p(p)
    x = finite_array("x", x, ndim=2)
    y = check_labels("y", y, n=x.shape[0], classes=np.iinfo(np.int64).max)
    correct, radii = _check_flags(correct, len(y)), np.asarray(radii)
    if radii.ndim != 1 or not (radii >= 0).all():
        raise InvalidInput(
            f"radii has shape {radii.shape} or a negative radius or NaN in it; pass a list of radii >= 0"
        )
    if not block >= 2:
        raise InvalidInput(f"block is {block!r}; pass the number of points to match at a time, at least 2")
    matched = np.zeros(len(radii))
    for mine in _halves(x[correct], block):
        points, labels = x[correct][mine], y[correct][mine]
        distances = _opponents(points, points, labels, labels, p=p)
        # A distance that was rounded down would be an edge too many; one too few only raises the ceiling.
        halves, different = distances * (_ROUNDED_UP / 2), np.isfinite(distances)
        covers = [maximum_bipartite_matching(csr_array(different & (halves <= r))) for r in radii]
        matched += [np.count_nonzero(cover >= 0) for cover in covers]
    return (correct.sum() - matched / 2) / len(y)


@dataclass(frozen=True)
class OpponentDistances:
    """Distances between points of different labels in blocks of a data set, for :func:`ceiling_in_blocks`.

    ``rows`` are the points of every block, ``costs`` their distances, inf between points of one label, in
    units of 2^exponent, the size of the largest feature; one below 2^-1000 of that counts as much. ``width``
    is the number of features.
    """

    rows: tuple[Int[Array, " _"], ...]
    costs: tuple[Float[Array, "_ _"], ...]
    exponent: int
    width: int


def opponent_distances(
    x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float, block: int = 500
) -> OpponentDistances:
    """Distances inside blocks of at most ``block`` points, an identity: every so many-th point in one block.

    Distances below 2^-1000 of the largest feature are rounded up to that. One set of distances serves the
    ceilings of any number of classifiers. Memory O(m block), time O(m block n).
    Raises: InvalidInput as ``universal_ceiling``, or unless block >= 2.
    """
    if not block >= 2:
        raise InvalidInput(f"block is {block!r}; pass the number of points to match at a time, at least 2")
    x, y, exponent = _checked(x, y, p=p)
    blocks = -(-len(y) // block)
    rows = tuple(np.arange(start, len(y), blocks) for start in range(blocks))
    costs = tuple(_opponents(x[r], x[r], y[r], y[r], p=p, exponent=exponent) for r in rows)
    return OpponentDistances(rows, costs, exponent, x.shape[1])


def ceiling_in_blocks(distances: OpponentDistances, correct: Bool[Array, " m"]) -> float:
    """Ceiling at a given correct set by blocks, bound: equal to ``mean_radius_ceiling`` for one block.

    Then, too, it is larger where distances that count are below 2^-1000 of the largest feature of all points.
    Never below the ceiling of all correct points in one block: the constraints r_i + r_j <= D_ij are kept
    within blocks only, and fewer constraints can only raise the largest mean. ``mean_radius_ceiling`` of more
    than 2,000 points has blocks of its own, and may be above or below. inf where the correct points of a
    block have one label.
    Raises: InvalidInput unless ``correct`` is one flag per point.
    Source: this project.
    """
    correct = _check_flags(correct, sum(len(rows) for rows in distances.rows))
    total = 0.0
    for rows, costs in zip(distances.rows, distances.costs, strict=True):
        right = correct[rows]
        cost = costs[np.ix_(right, right)]
        if cost.size:
            cheapest = cost.min(axis=1)
            total += np.inf if np.isinf(cheapest).any() else _cheapest_cover(cost, cheapest)
    terms = len(correct) + distances.width
    return _unscaled(total / (2 * len(correct)), distances.exponent, terms=terms)
