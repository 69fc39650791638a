"""Laws of linear classifiers: radii, averages, bounds from class statistics, ceilings, Gaussian classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import strategies as st

from theory.ceiling import blockwise_ceiling, mean_radius_ceiling, universal_ceiling
from theory.laws import averages, linear_masks
from theory.laws import linear as laws
from theory.laws import strategies as draw
from theory.laws.law import Kind, Law
from theory.linear import (
    ClassStatistics,
    binary_mean_radius,
    fgs_accuracy,
    hoelder_ceiling,
    jensen_bound,
    markov_bound,
    masked_gaussian_mean_radius,
    masked_mean_radius,
    mean_radius,
    norm_interpolation,
    optimal_robust_accuracy,
    paper_multiclass_bound,
    radius,
    robust_accuracy,
    runner_up_decomposition,
    sparse_ceiling,
    support_ceiling,
    weight_free_bound,
)
from theory.types import BinaryLinear

NORM = {"p": draw.attack_norms()}
BUDGET = {"eps": st.floats(1e-3, 3)}


def _cases(kind: str, **more: st.SearchStrategy) -> st.SearchStrategy:
    """A linear problem (clf, x, y) of this kind, and more arguments."""
    return st.tuples(draw.linear_problems(kind), st.fixed_dictionaries(more)).map(
        lambda parts: dict(zip(("clf", "x", "y"), parts[0], strict=True)) | parts[1]
    )


def _points(**more: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(draw.labelled_points(), st.fixed_dictionaries(more)).map(
        lambda parts: dict(zip(("x", "y"), parts[0], strict=True)) | parts[1]
    )


def _pairs(first: str, second: str, drawn: st.SearchStrategy, **more: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(drawn, st.fixed_dictionaries(more)).map(
        lambda parts: dict(zip((first, second), parts[0], strict=True)) | parts[1]
    )


def own_support_ceiling(clf: BinaryLinear, stats: ClassStatistics, *, p: float) -> float:
    """The bound of the classifier's own support."""
    return support_ceiling(stats, clf.weight != 0, p=p)


def own_sparse_ceiling(clf: BinaryLinear, stats: ClassStatistics, *, p: float) -> float:
    """The bound of the best support with as many non-zeros as the classifier."""
    return sparse_ceiling(stats, int(np.count_nonzero(clf.weight)), p=p)


def hoelder_ladder(clf: BinaryLinear, stats: ClassStatistics, *, p: float) -> list[float]:
    """The Hölder bounds from the own support to all features."""
    return [
        own_support_ceiling(clf, stats, p=p),
        own_sparse_ceiling(clf, stats, p=p),
        hoelder_ceiling(stats, p=p),
    ]


def _relaxes_ceiling(ceiling: Callable, x: np.ndarray, y: np.ndarray, *, p: float, block: int) -> float:
    return laws.relaxes(partial(ceiling, block=block), universal_ceiling, x, y, p=p)


def _law(
    name: str, kind: Kind, check: Callable, formula: Callable, cases: st.SearchStrategy, statement: str
) -> Law:
    return Law(f"linear.{name}", statement, kind, check, formula, cases)


ANY, BINARY, MULTI, TWO = (_cases(kind, **NORM) for kind in ("any", "binary", "multiclass", "two rows"))
BINARY_BUDGET = _cases("binary", **BUDGET)
MASKS = _pairs("weight", "gain", draw.weights_and_gains(6), alpha=draw.sparsities(), **NORM)
GAUSSIAN = _pairs("clf", "data", draw.gaussian_problems(), **NORM)
GAUSSIAN_MEANS = draw.gaussian_problems().map(lambda problem: (problem[0], problem[1].mean))
STATISTICS = st.fixed_dictionaries({"stats": draw.class_statistics_of_many(), **NORM})
POINTS = _points(**NORM)
FACTORS = st.sampled_from([2.0**-300, 0.5, 2.0**300])

LAWS: tuple[Law, ...] = (
    _law(
        "radius-safe",
        "property",
        laws.ball_is_safe,
        radius,
        ANY,
        "no step inside the radius changes a decision",
    ),
    _law(
        "radius-reached", "property", laws.boundary_is_reached, radius, ANY, "a step beyond the radius does"
    ),
    _law("radius-exact", "identity", laws.radius_is_exact, radius, ANY, "the radius in rational arithmetic"),
    _law(
        "radius-scale",
        "property",
        laws.radius_ignores_scale,
        radius,
        _cases("any", factor=FACTORS, **NORM),
        "the radius of c w, c b is that of w, b",
    ),
    _law("two-rows", "property", laws.equals_two_rows, radius, BINARY, "binary and two-row forms agree"),
    _law(
        "integral",
        "identity",
        lambda formula, **case: laws.integrates_to(robust_accuracy, formula, **case, cap=50.0),
        mean_radius,
        ANY,
        "R_p = integral of P(rho_p > eps)",
    ),
    _law(
        "accuracy",
        "identity",
        laws.starts_at_the_accuracy,
        robust_accuracy,
        ANY,
        "P(rho_p > 0) is the accuracy",
    ),
    _law(
        "fgs-binary",
        "identity",
        laws.equals_robust_accuracy,
        fgs_accuracy,
        BINARY_BUDGET,
        "two classes: r_inf(eps) = P(rho_inf > eps)",
    ),
    _law(
        "fgs",
        "bound",
        laws.is_an_attack,
        fgs_accuracy,
        _cases("any", **BUDGET),
        "P(rho_inf > eps) <= r_inf(eps)",
    ),
    _law(
        "mean-radius",
        "identity",
        laws.matches_sample,
        binary_mean_radius,
        BINARY,
        "R_p = sum_k pi_k t_k k (w.mu_k + b) / ||w||_q",
    ),
    _law(
        "markov",
        "bound",
        lambda formula, **case: laws.limits_robust_accuracy(formula, robust_accuracy, **case),
        markov_bound,
        _cases("binary", **BUDGET, **NORM),
        "P(rho_p > eps) <= sum_k pi_k t_k min(1, E rho / eps)",
    ),
    _law("markov-paper", "bound", laws.sharpens_markov, markov_bound, BINARY_BUDGET, "Markov <= R_inf / eps"),
    _law(
        "hoelder",
        "bound",
        laws.limits_statistics,
        hoelder_ceiling,
        BINARY,
        "R_p <= max pi t ||mu_+ - mu_-||_p",
    ),
    _law("support", "bound", laws.limits_sample, own_support_ceiling, BINARY, "the same on the support of w"),
    _law(
        "sparse",
        "bound",
        laws.limits_sample,
        own_sparse_ceiling,
        BINARY,
        "the same on the best support of its size",
    ),
    _law("hoelder-order", "bound", laws.rises, hoelder_ladder, BINARY, "support <= sparse <= Hölder ceiling"),
    _law(
        "norms",
        "bound",
        laws.interpolates,
        norm_interpolation,
        _cases("any"),
        "rho_2 / sqrt(s) <= rho_inf <= rho_2",
    ),
    _law(
        "runner-up",
        "identity",
        laws.adds_up,
        runner_up_decomposition,
        MULTI,
        "R_p is the sum over runner-up cells",
    ),
    _law("jensen", "bound", laws.limits_sample, jensen_bound, MULTI, "R_p <= sum_k pi_k t_k rho_p(mu_k)"),
    _law("jensen-two", "identity", laws.matches_sample, jensen_bound, TWO, "two classes: Jensen is exact"),
    _law(
        "jensen-sharpest",
        "bound",
        laws.is_sharpest,
        jensen_bound,
        MULTI,
        "Jensen <= weight-free, paper's form",
    ),
    _law(
        "paper-multiclass",
        "bound",
        laws.limits_sample,
        paper_multiclass_bound,
        MULTI,
        "R_p <= sum_k pi_k t_k distance of mu_k to the average boundary",
    ),
    _law(
        "weight-free",
        "bound",
        laws.limits_statistics,
        weight_free_bound,
        MULTI,
        "R_p <= best pairing of means",
    ),
    _law(
        "weight-free-program",
        "identity",
        laws.solves_mean_program,
        weight_free_bound,
        STATISTICS,
        "it is the linear program's optimum",
    ),
    _law(
        "ceiling",
        "bound",
        laws.limits_every_classifier,
        mean_radius_ceiling,
        MULTI,
        "R_p <= ceiling of the correct set",
    ),
    _law(
        "ceiling-program",
        "identity",
        laws.solves_pair_program,
        universal_ceiling,
        POINTS,
        "ceiling = linear program",
    ),
    _law(
        "ceiling-scale",
        "property",
        laws.scales_with_data,
        universal_ceiling,
        _points(factor=st.sampled_from([2.0**-400, 2.0**-3, 2.0**400]), **NORM),
        "the ceiling of c x is c times that of x",
    ),
    _law(
        "ceiling-blocks",
        "bound",
        _relaxes_ceiling,
        blockwise_ceiling,
        _points(block=st.integers(2, 10), **NORM),
        "the ceiling is at most that of blocks",
    ),
    _law(
        "masks",
        "identity",
        linear_masks.averages_all_masks,
        masked_mean_radius,
        MASKS,
        "E over masks of gain.(w*M) / ||w*M||_q, within the stated error",
    ),
    _law(
        "masks-radius",
        "bound",
        averages.is_below_expected_radius,
        masked_mean_radius,
        MASKS,
        "it is at most E R_p",
    ),
    _law(
        "masks-gaussian",
        "identity",
        linear_masks.averages_gaussian_masks,
        masked_gaussian_mean_radius,
        _pairs("clf", "data", draw.independent_gaussian_problems(), alpha=draw.sparsities(), **NORM),
        "Gaussian E over masks of R_p, within the stated error",
    ),
    _law(
        "gaussian",
        "identity",
        averages.equals_gaussian_mean_radius,
        binary_mean_radius,
        GAUSSIAN,
        "Gaussian R_p from its class statistics",
    ),
    _law(
        "gaussian-hoelder",
        "bound",
        averages.limits_gaussian_mean_radius,
        hoelder_ceiling,
        GAUSSIAN,
        "Gaussian R_p <= its Hölder ceiling",
    ),
    _law(
        "gaussian-markov",
        "bound",
        averages.limits_gaussian_robust_accuracy,
        markov_bound,
        _pairs("clf", "data", draw.gaussian_problems(), **BUDGET, **NORM),
        "Gaussian P(rho_p > eps) <= its Markov bound",
    ),
    _law(
        "gaussian-optimum",
        "bound",
        averages.limits_every_classifier,
        optimal_robust_accuracy,
        _pairs("clf", "mean", GAUSSIAN_MEANS, sigma=st.sampled_from([0.1, 1.0, 3.0]), **BUDGET, **NORM),
        "P(rho_p > eps) between isotropic Gaussians <= the best classifier's",
    ),
)
