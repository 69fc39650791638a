"""Linear classifiers, point by point: distances to decision boundaries and the accuracies they give.

A point is correct when its class scores strictly above every other; a tie is not correct. Its radius is 0
under either reading, so no mean radius depends on this convention.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, check_inputs, check_labels

LARGEST_TERM = float(np.finfo(np.float64).max) / 2  # of a difference that cannot overflow

Radius = TypeVar("Radius", float, Array)


def rows(clf: BinaryLinear | LinearClassifier) -> LinearClassifier:
    """The classifier with one row per class, an identity; a binary one gets the rows 0 and ``weight``.

    Raises: InvalidInput if a binary weight is zero, for it then has no decision boundary.
    """
    if isinstance(clf, LinearClassifier):
        return clf
    if not clf.weight.any():
        raise InvalidInput("weight is 0 in every entry; a binary classifier needs a non-zero weight")
    return LinearClassifier(np.stack([np.zeros_like(clf.weight), clf.weight]), np.array([0.0, clf.bias]))


def check_budget(name: str, value: float) -> float:
    """Return an attack budget as a float. Raises: InvalidInput unless it is a number >= 0 (inf allowed)."""
    if not (isinstance(value, int | float | np.floating | np.integer) and value >= 0):
        raise InvalidInput(f"{name} is {value!r}; pass a number >= 0")
    return float(value)


def margins(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"]
) -> Float[Array, "m c"]:
    """Scores of the labelled class minus those of every class j, identity; +inf at j = y.

    Weights are subtracted before they meet ``x``, so nearly equal classes lose no digits. Where the sizes of
    weights and inputs multiply beyond the floats, the result is 0 or infinite.
    Raises: InvalidInput for shapes that disagree, NaN or infinity, labels outside the classes, a zero
    binary weight.
    """
    return _scaled_margins(clf, x, y, q=1.0)[1]


def boundary_distances(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float
) -> Float[Array, "m c"]:
    """Signed l_p distance to the boundary between class y and class j, identity; +inf at j = y.

    ((w_y - w_j).x + b_y - b_j) / ||w_y - w_j||_q, 1/p + 1/q = 1. Rows w_y = w_j have no boundary: the
    distance is +inf where the margin is positive and -inf elsewhere.
    Raises: InvalidInput as ``margins``, or unless p is 2 or inf.
    """
    return _scaled_margins(clf, x, y, q=dual(p))[0]


def _scaled_margins(
    clf: BinaryLinear | LinearClassifier, x: object, y: object, *, q: float
) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
    """Distances and margins of every input to every class, identities; sizes are carried as powers of 2."""
    clf = rows(clf)
    classes, width = clf.weight.shape
    x = check_inputs(x, width=width)
    y = check_labels("y", y, n=x.shape[0], classes=classes)
    size = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1]
    unit_x = np.ldexp(x, -size)
    halved = int(max(np.abs(clf.weight).max(), np.abs(clf.bias).max()) > LARGEST_TERM)
    weight, bias = np.ldexp(clf.weight, -halved), np.ldexp(clf.bias, -halved)
    distance, margin = np.empty((2, x.shape[0], classes))
    for k in range(classes):
        mine = y == k
        apart, offset = weight[k] - weight, bias[k] - bias
        scale = np.frexp(np.abs(apart).max(axis=1))[1]
        apart, (offset, own) = np.ldexp(apart, -scale[:, None]), np.frexp(offset)
        own = own - scale  # the offset is a mantissa times 2^own, beside rows of largest entry near 1
        unit = np.where(offset == 0, size[mine], np.maximum(size[mine], own))
        value = np.ldexp(unit_x[mine] @ apart.T, size[mine] - unit) + np.ldexp(offset, own - unit)
        gap = norm(apart, p=q)
        with np.errstate(over="ignore", under="ignore"):
            margin[mine] = np.ldexp(value, unit + scale + halved)
            found = np.where(value > 0, math.inf, -math.inf)
            np.divide(value, gap, out=found, where=gap > 0)
            distance[mine] = np.ldexp(found, unit)
        distance[mine, k] = margin[mine, k] = math.inf
    return distance, margin


def radius(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float
) -> Float[Array, " m"]:
    """Linear radius, identity: smallest l_p norm of a perturbation that changes a correct decision.

    rho_p(x) = min_{j != y} ((w_y - w_j).x + b_y - b_j) / ||w_y - w_j||_q where x is classified as y; 0 where
    it is not; inf where no perturbation helps. A binary label is 1 on the side weight.x + bias > 0, else 0.
    Assumes: inputs not clipped to a box.
    Raises: InvalidInput as ``margins``, or unless p is 2 or inf.
    Source: the paper, Section 3.1; theory/symbolic.py::prove_linear_radius.
    """
    return np.maximum(boundary_distances(clf, x, y, p=p).min(axis=1), 0.0)


def mean_radius(
    clf: BinaryLinear | LinearClassifier,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    cap: float = math.inf,
) -> float:
    """Mean radius R_p of a sample, identity: the average of min(rho_p, cap), misclassified points counted 0.

    Raises: InvalidInput as ``radius``, or for a negative cap.
    """
    return float(mean_of(np.minimum(radius(clf, x, y, p=p), check_budget("cap", cap))))


def mean_of(values: Float[Array, "m *s"]) -> Float[Array, "*s"]:
    """The mean over the first axis, an identity whose sum cannot overflow: it is carried as a power of 2."""
    size = np.frexp(np.abs(values).max(axis=0, initial=0.0))[1]
    return np.asarray(np.ldexp(np.ldexp(values, -size).mean(axis=0), size))


def robust_accuracy(
    clf: BinaryLinear | LinearClassifier,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    p: float,
    eps: float,
) -> float:
    """Robust accuracy of a sample, identity: P(rho_p > eps), the share no perturbation of norm eps changes.

    Its integral over eps >= 0 is the mean radius; at eps = 0 it is the accuracy.
    Raises: InvalidInput as ``radius``, or for a negative eps.
    """
    return float((radius(clf, x, y, p=p) > check_budget("eps", eps)).mean())


def fgs_accuracy(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"], *, eps: float
) -> float:
    """The paper's r_inf(eps), identity: accuracy on fast-gradient-sign examples of the true label's loss.

    The loss is the cross-entropy of the softmax scores. Its gradient is a positive multiple of
    sum_{j != y} s_j (w_j - w_y) with s the softmax over the other classes, which is what is used: unlike the
    gradient itself it never underflows. For two classes this equals ``robust_accuracy`` with p = inf; for
    more it is only an upper bound of it.
    Assumes: inputs not clipped to a box.
    Raises: InvalidInput as ``margins``, or unless eps is finite and >= 0.
    """
    if check_budget("eps", eps) == math.inf:
        raise InvalidInput("eps is inf; the attack takes one finite step")
    weight, excess = rows(clf).weight, -margins(clf, x, y)
    weight = np.ldexp(weight, -np.frexp(np.abs(weight).max())[1] - 1)  # only signs of sums count
    highest = excess.max(axis=1, keepdims=True)
    share = np.exp(np.subtract(excess, highest, out=np.zeros_like(excess), where=excess != highest))
    ascent = share @ weight - share.sum(axis=1, keepdims=True) * weight[y]
    moved = margins(clf, x + eps * np.sign(ascent), y)
    return float((moved.min(axis=1) > 0).mean())


def norm_interpolation(clf: BinaryLinear | LinearClassifier, r2: Radius) -> tuple[Radius, Radius]:
    """Norm interpolation, bound: (lowest, highest) l_inf radius given the l_2 radius of the same points.

    r_2 / sqrt(s) <= r_inf <= r_2, with s the largest number of non-zeros of a difference of two class
    weights (of the weight itself when binary). ``r2`` is one radius, an array of them, or their mean. The
    lower end is attained by entries of equal size, the upper by a difference with one non-zero.
    Raises: InvalidInput if a radius is negative or NaN, or a binary weight is zero.
    """
    if not np.all(np.asarray(r2) >= 0):
        raise InvalidInput("r2 holds a negative or NaN radius; pass l_2 radii >= 0")
    weight = rows(clf).weight
    nonzeros = int(np.count_nonzero(weight[:, None] != weight, axis=-1).max())
    return r2 / math.sqrt(max(nonzeros, 1)), r2
