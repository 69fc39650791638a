"""Binary linear classifiers through their class statistics: mean radius, Markov bound, Hölder ceilings."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from theory.linear.exact import boundary_distances, check_budget
from theory.linear.statistics import ClassStatistics
from theory.norms import norm
from theory.types import BinaryLinear, InvalidInput, check_p


def _two_classes(stats: ClassStatistics) -> None:
    if stats.prior.size != 2:
        raise InvalidInput(f"stats has {stats.prior.size} classes; this statement is about two")


def _class_radii(clf: BinaryLinear, stats: ClassStatistics, *, p: float) -> Float[Array, " 2"]:
    """Mean radius of the correct inputs of each class, 0 for a class without any."""
    _two_classes(stats)
    distance = boundary_distances(clf, stats.mean, np.arange(2), p=p).min(axis=1)
    return np.where(stats.mass > 0, distance, 0.0)


def binary_mean_radius(clf: BinaryLinear, stats: ClassStatistics, *, p: float) -> float:
    """Binary mean radius, identity: R_p = sum_k pi_k t_k k (w.mu_k + b) / ||w||_q over k = -1, +1.

    For any priors and accuracies; with pi = 1/2 and t_- = t_+ = t it is (t/2) w.(mu_+ - mu_-) / ||w||_q.
    Assumes: ``stats`` are those of ``clf``; row 0 is k = -1, row 1 is k = +1.
    Raises: InvalidInput unless p is 2 or inf, ``stats`` has two classes of the classifier's width, and the
    weight is not zero.
    Source: the paper, Section 3.1, there for equal priors; theory/symbolic.py::prove_binary_mean_radius.
    """
    return float(stats.mass @ _class_radii(clf, stats, p=p))


def markov_bound(clf: BinaryLinear, stats: ClassStatistics, *, eps: float, p: float = math.inf) -> float:
    """The paper's Theorem 3.1 for r_inf, sharpened class by class, bound: P(rho_p > eps) is at most this.

    sum_k pi_k t_k min(1, E[rho_p | k, correct] / eps), Markov's inequality within each class. It is at most
    the paper's binary_mean_radius / eps and at most the accuracy, and no bound that sees only ``stats``
    improves on it. eps = 0 gives the accuracy.
    Assumes: ``stats`` are those of ``clf``.
    Raises: InvalidInput as ``binary_mean_radius``, or for a negative eps.
    Source: the paper, Theorem 3.1; theory/symbolic.py::prove_markov.
    """
    radii = _class_radii(clf, stats, p=p)
    share = np.divide(radii, check_budget("eps", eps), out=np.ones(2), where=radii < eps)
    return float(stats.mass @ share)


def hoelder_ceiling(stats: ClassStatistics, *, p: float) -> float:
    """Hölder ceiling, bound: R_p <= max(pi_- t_-, pi_+ t_+) ||mu_+ - mu_-||_p, whatever the bias.

    For equal priors and accuracies this is the paper's (t/2) ||mu_+ - mu_-||_p. In general R_p is linear in
    the bias, which must keep the mean correct input of each class on its side: the extreme bias puts the
    boundary through the mean of the rarer class, and Hölder's inequality does the rest. The supremum is
    approached on two point masses by w = mu_+ - mu_- (p = 2), or by the 1-sparse w on its largest entry
    (p = inf), so no function of ``stats`` alone is smaller.
    Returns inf when exactly one class has correct inputs: the bias can then push the boundary away for ever.
    Assumes: a linear classifier with these ``stats``; for all linear classifiers at once only at t = 1.
    Raises: InvalidInput unless p is 2 or inf and ``stats`` has two classes.
    Source: this project; balanced case in the paper, Section 3.1; theory/symbolic.py::prove_hoelder_ceiling.
    """
    return support_ceiling(stats, np.ones(stats.mean.shape[1], dtype=bool), p=p)


def support_ceiling(stats: ClassStatistics, support: Bool[Array, " n"], *, p: float) -> float:
    """Hölder ceiling on a support S, bound: R_p <= max(pi_- t_-, pi_+ t_+) ||(mu_+ - mu_-)_S||_p.

    Holds for every weight that is zero outside ``support`` (n,) and every bias; approached by
    w = (mu_+ - mu_-)_S for p = 2. Returns inf and assumes as ``hoelder_ceiling``.
    Raises: InvalidInput as ``hoelder_ceiling``, or for an empty support or one of another length.
    Source: this project.
    """
    _two_classes(stats)
    support = np.asarray(support)
    if support.shape != stats.mean.shape[1:] or support.dtype != bool or not support.any():
        raise InvalidInput(
            f"support has shape {support.shape}, dtype {support.dtype} and {np.count_nonzero(support)} true "
            f"entries; pass a boolean mask of {stats.mean.shape[1]} features with at least one kept"
        )
    check_p(p)
    if np.count_nonzero(stats.mass) < 2:
        return math.inf if stats.mass.any() else 0.0
    with np.errstate(over="ignore"):
        difference = (stats.mean[1] - stats.mean[0])[support]
        return float(stats.mass.max() * norm(difference[None], p=p)[0])


def sparse_ceiling(stats: ClassStatistics, nonzeros: int, *, p: float) -> float:
    """Hölder ceiling of sparse weights, bound: ``support_ceiling`` on the best support of this many features.

    That support holds the largest entries of |mu_+ - mu_-|. For p = inf the value is the same for every
    ``nonzeros`` >= 1 (one weight suffices); for p = 2 it grows with ``nonzeros``. This is why sparsity can
    be free against l_inf attacks and is not against l_2 ones.
    Raises: InvalidInput as ``hoelder_ceiling``, or unless 1 <= nonzeros <= n.
    Source: this project.
    """
    _two_classes(stats)
    width = stats.mean.shape[1]
    if not (isinstance(nonzeros, int | np.integer) and 1 <= nonzeros <= width):
        raise InvalidInput(f"nonzeros is {nonzeros}; a weight on {width} features keeps 1 to {width} of them")
    support = np.zeros(width, dtype=bool)
    halves = stats.mean / 2
    support[np.argsort(np.abs(halves[1] - halves[0]))[width - nonzeros :]] = True
    return support_ceiling(stats, support, p=p)
