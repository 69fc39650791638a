"""Linear classifiers, point by point: distances to decision boundaries and the accuracies they give.

A point is correct when its class scores strictly above every other; a tie is not correct. Its radius is 0
under either reading, so no mean radius depends on this convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, check_inputs, check_labels

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
    return _distances_and_margins(clf, x, y, q=1.0)[1]


def boundary_distances(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float
) -> Float[Array, "m c"]:
    """Signed l_p distance to the boundary between class y and class j, identity; +inf at j = y.

    ((w_y - w_j).x + b_y - b_j) / ||w_y - w_j||_q, 1/p + 1/q = 1. Rows w_y = w_j have no boundary: the
    distance is +inf where the margin is positive and -inf elsewhere.
    Raises: InvalidInput as ``margins``, or unless p is 2 or inf.
    """
    return _distances_and_margins(clf, x, y, q=dual(p))[0]


def _distances_and_margins(
    clf: BinaryLinear | LinearClassifier, x: object, y: object, *, q: float
) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
    """Distances and margins of every input to every class, identities."""
    clf = rows(clf)
    classes, width = clf.weight.shape
    x = check_inputs(x, width=width)
    y = check_labels("y", y, n=x.shape[0], classes=classes)
    distance, margin = np.empty((2, x.shape[0], classes))
    for k in range(classes):
        mine = y == k
        normal, offset = differences(clf.weight, k), differences(clf.bias[:, None], k)
        distance[mine], margin[mine] = half_space_distances(normal, offset, x[mine], q=q)
        distance[mine, k] = margin[mine, k] = math.inf
    return distance, margin


@dataclass(frozen=True)
class Scaled:
    """Numbers beyond the range of floats, row by row: value (c, n) times 2^exponent (c,)."""

    value: Float[Array, "c n"]
    exponent: Int[Array, " c"]


def differences(values: Float[Array, "c n"], k: int) -> Scaled:
    """Row k minus every row, an identity; halved where it would overflow."""
    with np.errstate(over="ignore"):
        found = values[k] - values
    over = np.isinf(found).any(axis=1)
    found[over] = values[k] / 2 - values[over] / 2
    return Scaled(found, over.astype(np.int32))


def half_space_distances(
    normal: Scaled, offset: Scaled, x: Float[Array, "m n"], *, q: float
) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
    """(normal_j . x + offset_j) / ||normal_j||_q, +-inf where normal_j = 0, and the numerator, an identity.

    normal (c, n) and offset (c, 1). Sizes are carried as powers of 2: only results may leave the floats.
    """
    scale = np.frexp(np.abs(normal.value).max(axis=1))[1]
    unit = np.ldexp(normal.value, -scale[:, None])
    value, size = _products(x, normal.value, unit, scale)
    size = size + normal.exponent
    constant, own = np.frexp(offset.value[:, 0])
    own = own + offset.exponent  # the offset is a mantissa times 2^own
    largest = np.where(value == 0, own, np.where(constant == 0, size, np.maximum(size, own)))
    value = np.ldexp(value, size - largest) + np.ldexp(constant, own - largest)
    gap = norm(unit, p=q)
    with np.errstate(over="ignore", under="ignore"):
        margin = np.ldexp(value, largest)
        found = np.where(value > 0, math.inf, -math.inf)
        np.divide(value, gap, out=found, where=gap > 0)
        return np.ldexp(found, largest - scale - normal.exponent), margin


def _products(
    x: Float[Array, "m n"], normal: Float[Array, "c n"], unit: Float[Array, "c n"], scale: Int[Array, " c"]
) -> tuple[Float[Array, "m c"], Int[Array, "m c"]]:
    """normal . x as value times 2^exponent, an identity; ``unit`` is ``normal`` over 2^scale, below 1.

    Where that is so small that single products may have been lost, they are added up one by one.
    """
    size = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1]
    value = np.ldexp(x, -size) @ unit.T
    exponent = np.broadcast_to(size, value.shape) + scale
    lost = np.abs(value) < 2 * x.shape[1] * np.finfo(np.float64).tiny
    for j in np.flatnonzero(lost.any(axis=0)):
        used, mine = normal[j] != 0, lost[:, j]
        weights, inputs = np.frexp(normal[j, used]), np.frexp(x[mine][:, used])
        product, power = inputs[0] * weights[0], inputs[1] + weights[1]
        least = np.iinfo(np.int32).min // 2
        highest = np.where(product == 0, least, power).max(axis=1, initial=least)
        value[mine, j] = np.ldexp(product, power - highest[:, None]).sum(axis=1)
        exponent[mine, j] = np.where(highest == least, 0, highest)
    return value, exponent


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
    gradient itself it never underflows as a whole. For two classes this equals ``robust_accuracy`` with
    p = inf; for more it is only an upper bound of it. Classes whose share s_j is below the floats count 0.
    Assumes: inputs not clipped to a box.
    Raises: InvalidInput as ``margins``, or unless eps is finite and >= 0.
    """
    if check_budget("eps", eps) == math.inf:
        raise InvalidInput("eps is inf; the attack takes one finite step")
    weight, excess = rows(clf).weight, -margins(clf, x, y)
    # Only signs of sums count: every column is as large as its sums and differences allow.
    weight = np.ldexp(weight, 1022 - len(weight).bit_length() - np.frexp(np.abs(weight).max(axis=0))[1])
    highest = excess.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        share = np.exp(np.subtract(excess, highest, out=np.zeros_like(excess), where=excess != highest))
    x, y, ascent = np.asarray(x, dtype=np.float64), np.asarray(y), np.empty(np.shape(x))
    for k in range(len(weight)):
        ascent[y == k] = share[y == k] @ (weight - weight[k])
    with np.errstate(over="ignore"):
        moved = x + eps * np.sign(ascent)
    if not np.isfinite(moved).all():
        raise InvalidInput(
            f"eps is {eps}, which moves an input beyond the largest float; give a smaller step"
        )
    return float((margins(clf, moved, y).min(axis=1) > 0).mean())


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
