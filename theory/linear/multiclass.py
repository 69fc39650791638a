"""Multi-class linear classifiers: the runner-up decomposition and bounds from class statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.optimize import linprog

from theory.linear.exact import Scaled, boundary_distances, differences, half_space_distances, mean_of, rows
from theory.linear.statistics import ClassStatistics
from theory.norms import dual, norm
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, check_p

TINY = float(np.finfo(float).tiny)  # the smallest normal number


@dataclass(frozen=True)
class RunnerUp:
    """Where the mean radius comes from; cell (k, j) holds the correct inputs of class k closest to class j.

    mass (c, c): probability of the cell; mean (c, c, n): mean input of the cell, 0 if it is empty;
    contribution (c, c): mass times the distance of that mean input to the boundary between k and j. The
    diagonal holds inputs that no perturbation moves to another class (contribution inf).
    """

    mass: Float[Array, "c c"]
    mean: Float[Array, "c c n"]
    contribution: Float[Array, "c c"]


def runner_up_decomposition(
    clf: BinaryLinear | LinearClassifier, x: Float[Array, "m n"], y: Int[Array, " m"], *, p: float
) -> RunnerUp:
    """Runner-up decomposition, identity: the contributions add up to the mean radius of the sample.

    R_p = sum_{k, j} P(k, j) ((w_k - w_j).mu_kj + b_k - b_j) / ||w_k - w_j||_q, with (k, j) the event that an
    input of class k is correct and closest to the boundary with j (the lowest j on a tie).
    Raises: InvalidInput as ``radius``.
    Source: this project, after the paper, Theorem 3.2.
    """
    distance = boundary_distances(clf, x, y, p=p)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    runner_up = np.where(np.isinf(distance.min(axis=1)), y, distance.argmin(axis=1))
    correct = distance.min(axis=1) > 0
    classes, count = distance.shape[1], len(y)
    mass = np.zeros((classes, classes))
    mean = np.zeros((classes, classes, x.shape[1]))
    contribution = np.zeros((classes, classes))
    cells, member = np.unique(np.stack([y, runner_up], axis=1)[correct], axis=0, return_inverse=True)
    if len(cells):
        k, j = cells.T
        mass[k, j] = np.bincount(member.ravel()) / count
        mean[k, j] = [mean_of(x[correct][member.ravel() == cell]) for cell in range(len(cells))]
        to_boundary = boundary_distances(clf, mean[k, j], k, p=p)[np.arange(len(cells)), j]
        contribution[k, j] = mass[k, j] * to_boundary
    return RunnerUp(mass, mean, contribution)


def _check_match(clf: BinaryLinear | LinearClassifier, stats: ClassStatistics) -> LinearClassifier:
    clf = rows(clf)
    if clf.weight.shape != stats.mean.shape:
        raise InvalidInput(
            f"stats has means of shape {stats.mean.shape}, the class weights {clf.weight.shape}; "
            "pass the statistics of this classifier"
        )
    return clf


def _average(stats: ClassStatistics, values: Float[Array, " c"]) -> float:
    """sum_k pi_k t_k values_k, where a class without correct inputs counts 0 even if its value is inf."""
    return float(stats.mass @ np.where(stats.mass > 0, values, 0.0))


def jensen_bound(clf: BinaryLinear | LinearClassifier, stats: ClassStatistics, *, p: float) -> float:
    """Jensen bound, bound: R_p <= sum_k pi_k t_k min_{j != k} distance of mu_k to the boundary with j.

    The radius is a minimum of affine functions of x, so its mean is at most its value at the mean. An
    identity for two classes and wherever each class has one runner-up.
    Assumes: ``stats`` are those of ``clf``.
    Raises: InvalidInput unless p is 2 or inf and ``stats`` has the classifier's classes and width.
    Source: this project; theory/symbolic.py::prove_jensen_pair.
    """
    clf = _check_match(clf, stats)
    distance = boundary_distances(clf, stats.mean, np.arange(stats.prior.size), p=p)
    return _average(stats, distance.min(axis=1))


def paper_multiclass_bound(
    clf: BinaryLinear | LinearClassifier, stats: ClassStatistics, *, p: float
) -> float:
    """The paper's Theorem 3.2 with biases, bound: R_p is at most the mean distance to the average boundary.

    R_p <= sum_k pi_k t_k ((w_k - wbar).mu_k + b_k - bbar) / ||w_k - wbar||_q, wbar and bbar averaging all
    classes. No further condition is needed for the mean radius: where the score of class k is at most the
    average score, k cannot win, so the distance to that half-space is no smaller than the radius. Divided by
    eps it limits the robust accuracy P(rho_p > eps), by Markov's inequality. A class with w_k = wbar gives
    inf, and the Jensen bound is never larger. Two readings of the theorem do need more:
    - without the biases they must cancel: equal b_k, or equal pi_k t_k and equal ||w_k - wbar||_q;
    - the accuracy on fast-gradient-sign examples, the paper's r_inf(eps), can exceed the bound divided by
      eps; it cannot for two classes, or where the wrong classes are equally likely, for then the gradient's
      sign is that of wbar - w_k.
    Assumes: ``stats`` are those of ``clf``.
    Raises: InvalidInput as ``jensen_bound``.
    Source: the paper, Theorem 3.2; theory/symbolic.py::prove_average_boundary.
    """
    clf = _check_match(clf, stats)
    normal, offset = _from_average(clf.weight), _from_average(clf.bias[:, None])
    ratio = half_space_distances(normal, offset, stats.mean, q=dual(p))[0].diagonal()
    return _average(stats, np.where(normal.value.any(axis=1), ratio, math.inf))


def _from_average(values: Float[Array, "c n"]) -> Scaled:
    """Every row minus the average of all, an identity: exactly 0 where all are equal, without overflow."""
    highest = 1022 - len(values).bit_length()  # a power whose sums and differences stay within the floats
    exponent = int(np.frexp(np.abs(values).max())[1]) - highest if values.any() else 0
    smaller = np.ldexp(values, -exponent)
    return Scaled((smaller[:, None] - smaller).mean(axis=1), np.full(len(values), exponent, dtype=np.int32))


def _mean_distances(mean: Float[Array, "c n"], *, p: float) -> tuple[Float[Array, " pairs"], int]:
    """||mu_k - mu_j||_p, k < j, as values times one power of 2; unequal means have one above 0."""
    parts = [differences(mean[k:], 0) for k in range(len(mean) - 1)]
    gap = np.concatenate([part.value[1:] for part in parts])
    own, apart = np.frexp(np.abs(gap).max(axis=1))[1], gap.any(axis=1)
    size = own + np.concatenate([part.exponent[1:] for part in parts])
    exponent = int(size[apart].max()) if apart.any() else 0
    distance = np.ldexp(norm(np.ldexp(gap, -own[:, None]), p=p), size - exponent)
    return np.where(apart, np.maximum(distance, TINY), 0.0), exponent


def weight_free_bound(stats: ClassStatistics, *, p: float) -> float:
    """Weight-free bound, bound: the best pairing of class means limits R_p whatever weights and biases.

    The terms r_k of the Jensen bound obey r_k + r_j <= ||mu_k - mu_j||_p, because boundary (k, j) separates
    the two means. So R_p <= max sum_k pi_k t_k r_k under these constraints, a linear program whose dual
    covers each class k with weight pi_k t_k by pairs: min sum_{k<j} l_kj ||mu_k - mu_j||_p subject to
    sum_j l_kj >= pi_k t_k. Any l that covers is a proof, so what the solver returns is topped up to cover
    exactly. It is never above the average over pairs, t/(c(c-1)) sum_{k<j} ||mu_k - mu_j||_p when balanced,
    and for two classes it is the Hölder ceiling.
    Returns inf when exactly one class has correct inputs.
    Assumes: a linear classifier with these ``stats``; for all linear classifiers at once only at t = 1.
    Raises: InvalidInput unless p is 2 or inf.
    Source: this project; theory/symbolic.py::prove_jensen_pair.
    """
    check_p(p)
    active = stats.mass > 0
    if active.sum() < 2:
        return math.inf if active.any() else 0.0
    mass, mean = stats.mass[active], stats.mean[active]
    first, second = np.triu_indices(mass.size, k=1)
    distance, exponent = _mean_distances(mean, p=p)
    if not distance.any():
        return 0.0
    unit = distance.max()
    incidence = np.equal.outer(np.arange(mass.size), first) | np.equal.outer(np.arange(mass.size), second)
    share = mass / mass.max()
    solution = linprog(distance / unit, A_ub=-incidence.astype(float), b_ub=-share, method="highs")
    found = np.zeros(len(first)) if solution.x is None else solution.x  # topped up all the same
    cover = np.maximum(found, 0.0) * mass.max()
    shortfall = np.maximum(mass - incidence @ cover, 0.0)
    cheapest = np.where(incidence, distance, math.inf).min(axis=1)
    with np.errstate(over="ignore"):
        return float(np.ldexp(cover @ distance + shortfall @ cheapest, exponent))
