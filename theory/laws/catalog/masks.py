"""Laws of random masks beyond the ladder: rung S and its moments, tails, certified radii, layer moments."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from theory.laws import masks as laws
from theory.laws import moments
from theory.laws import relu as relu_laws
from theory.laws import strategies as draw
from theory.laws.law import Kind, Law
from theory.relu import (
    expected_lipschitz,
    expected_margin_bound,
    expected_radius_lower_bound,
    expected_radius_upper_bound,
    halfcut_bound,
    halfcut_path_bound,
    high_probability_bound,
    margin_moment_bounds,
    oversparse_kept_fraction,
    predict,
    trace_moments,
)
from theory.relu.lipschitz import scaled
from theory.relu.moments import preactivation_moments
from theory.relu.oversparsification import path_probability
from theory.relu.rectified import rectified_moments
from theory.types import ReLUNetwork

PAIR = (0, 1)
ROUNDING = 1e-11  # of a sum over closed walks, of which each adds a few roundings


def orders(weights: tuple[np.ndarray, ...]) -> list[int]:
    """The orders of E tr (Z Z')^p that rung S uses, for one masked matrix or a product of two."""
    return [1, 2] if len(weights) == 2 else [2, 4]


def trace_moment(weights: tuple[np.ndarray, ...], keep: np.ndarray, p: int) -> float:
    """E tr (Z Z')^p of the product Z of masked matrices, by cumulants."""
    sums = trace_moments.product_sums(weights, p)
    return float(trace_moments.product_moment(weights, sums, keep)[0])


def root_norm(weights: tuple[np.ndarray, ...], keep: np.ndarray) -> float:
    """The bound of sqrt( E||Z||_2^2 ) by the two trace moments of rung S, of scaled weights as there."""
    weights, exponent = _scaled(weights)
    low, high = (trace_moments.product_sums(weights, p) for p in orders(weights))
    return float(np.ldexp(trace_moments.product_norm(weights, low, high, keep), exponent))


def noise_norm(weights: tuple[np.ndarray, ...], keep: np.ndarray) -> float:
    """The bound of sqrt( E||W * (M - k)||_2^2 ) by closed walks, for one matrix, scaled as in rung S."""
    (mantissa,), exponent = _scaled(weights[:1])
    sums = {p: trace_moments.noise_sums(mantissa, p) for p in trace_moments.ORDERS}
    return float(np.ldexp(trace_moments.noise_norm(sums, keep[:1])[0] * (1 + ROUNDING), exponent))


def _scaled(weights: tuple[np.ndarray, ...]) -> tuple[tuple[np.ndarray, ...], int]:
    """Matrices whose powers are floats, and the exponent that their product has lost."""
    parts = [scaled(weight) for weight in weights]
    return tuple(mantissa for mantissa, _ in parts), sum(int(exponent) for _, exponent in parts)


def _cases(names: tuple[str, ...], drawn: st.SearchStrategy, **more: st.SearchStrategy) -> st.SearchStrategy:
    """What a strategy draws, by name, and more arguments."""
    return st.tuples(drawn, st.fixed_dictionaries(more)).map(
        lambda parts: dict(zip(names, parts[0], strict=True)) | parts[1]
    )


def _masked(**more: st.SearchStrategy) -> st.SearchStrategy:
    return _cases(("net", "alphas"), draw.masked_networks(), pair=st.just(PAIR), **more)


def _problems(**more: st.SearchStrategy) -> st.SearchStrategy:
    return _cases(("net", "x", "y", "alphas"), draw.masked_problems(), **more)


def _moments_of_all_orders(formula: Callable, weights: tuple[np.ndarray, ...], keep: np.ndarray) -> float:
    return max(laws.law_equals_trace_moment(formula, weights, keep, p) for p in orders(weights))


def _bounds_fluctuation(formula: Callable, weights: tuple[np.ndarray, ...], keep: np.ndarray) -> float:
    return laws.law_bounds_root_mean_square_norm(formula, weights[:1], keep[:1], centred=True)


def _bounds_margin(
    formula: Callable, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> float:
    return moments.law_bounds_expected_margin(formula, net, x, alphas, PAIR)


def _bounds_paths(
    formula: Callable, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> float:
    return moments.law_bounds_path_probability(formula, net, x[0], alphas, PAIR)


def _bounds_lipschitz(
    formula: Callable, net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int], *, p: float
) -> float:
    return moments.law_bounds_expected_lipschitz(formula, net, alphas, p=p)


def _sparser_is_worse(
    kappa: Callable, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> None:
    unmasked_last = np.append(alphas[:-1], 0.0)
    moments.law_sparser_than_kappa_is_worse(kappa, net, x, y, unmasked_last)


def _first_layer(
    formula: Callable, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> float:
    return moments.law_first_layer_exact(formula, net, x, 1 - alphas)


def _without_masks(
    formula: Callable, net: ReLUNetwork, x: np.ndarray, y: np.ndarray, alphas: np.ndarray
) -> None:
    moments.law_dense_exact(formula, net, x, y, (y + 1) % net.classes)


def _law(
    name: str,
    kind: Kind,
    check: Callable,
    formula: Callable,
    cases: st.SearchStrategy,
    statement: str,
    *,
    free: bool = True,
) -> Law:
    return Law(f"masks.{name}", statement, kind, check, formula, cases, free=free)


P = {"p": draw.attack_norms()}
PROBLEMS = _problems()
RADII = _problems(cap=st.sampled_from([0.25, 2.0, math.inf]), **P)
PRODUCTS = _cases(("weights", "keep"), draw.masked_products())

SPECTRAL: tuple[Law, ...] = (
    _law(
        "S",
        "bound",
        laws.law_bounds_second_moment_of_supremum,
        halfcut_bound,
        _masked(),
        "(E sup ||J||_2^2)^(1/2) <= S",
    ),
    _law(
        "S-path",
        "bound",
        relu_laws.law_bounds_expected_supremum,
        halfcut_path_bound,
        _masked(p=st.just(math.inf)),
        "E sup ||J||_1 <= half-cuts of the path norm",
    ),
    _law(
        "trace-moment",
        "identity",
        _moments_of_all_orders,
        trace_moment,
        PRODUCTS,
        "E tr (Z Z')^p over masks, by cumulants",
    ),
    _law(
        "trace-norm",
        "bound",
        laws.law_bounds_root_mean_square_norm,
        root_norm,
        PRODUCTS,
        "E ||Z||_2^2 <= its bound by two trace moments",
    ),
    _law(
        "noise-norm",
        "bound",
        _bounds_fluctuation,
        noise_norm,
        PRODUCTS,
        "E ||W * (M - k)||_2^2 <= its bound by closed walks",
    ),
    _law(
        "tail",
        "bound",
        laws.law_holds_with_probability,
        high_probability_bound,
        _masked(delta=st.sampled_from([1e-18, 1e-3, 0.1, 0.5, 0.9]), **P),
        "P(sup ||J||_q > tail) <= delta",
    ),
)

EXPECTED_RADII: tuple[Law, ...] = (
    _law(
        "radius-lower",
        "bound",
        moments.law_below_expected_radius,
        expected_radius_lower_bound,
        RADII,
        "lower bound <= E min(X / L, cap)",
    ),
    _law(
        "radius-upper",
        "bound",
        moments.law_above_expected_radius,
        expected_radius_upper_bound,
        RADII,
        "E min(X / L, cap) <= upper bound",
    ),
    _law(
        "margin-moments",
        "bound",
        moments.law_bounds_margin_moments,
        margin_moment_bounds,
        PROBLEMS,
        "first <= E X, E max(X, 0)^2 <= second",
    ),
    _law(
        "expected-margin", "bound", _bounds_margin, expected_margin_bound, PROBLEMS, "E|g_i - g_k| <= bound"
    ),
    _law(
        "expected-lipschitz",
        "bound",
        _bounds_lipschitz,
        expected_lipschitz,
        _masked(**P),
        "E L and (E L^2)^(1/2) <= bounds",
    ),
    _law(
        "path-probability",
        "bound",
        _bounds_paths,
        path_probability,
        PROBLEMS,
        "P(a path is left) <= bound <= 1",
    ),
    _law(
        "kappa",
        "property",
        _sparser_is_worse,
        oversparse_kept_fraction,
        _cases(("net", "x", "y", "alphas"), draw.masked_problems(biases=False)),
        "prod k_j < kappa: (E sqrt X)^2 / F is at most its dense value",
    ),
)

MOMENTS: tuple[Law, ...] = (
    _law(
        "rectified",
        "identity",
        moments.law_rectified,
        rectified_moments,
        st.fixed_dictionaries({"mean": st.floats(-30, 30), "sd": st.sampled_from([1.0, 1e-3, 1e3])}).map(
            lambda case: case | {"mean": case["mean"] * case["sd"]}
        ),
        "E, Var of max(z, 0) and P(z > 0), in 40 digits",
        free=False,
    ),
    _law(
        "first-layer",
        "identity",
        _first_layer,
        preactivation_moments,
        PROBLEMS,
        "mean, covariance of the first layer over its masks",
    ),
    _law(
        "dense-prediction",
        "property",
        _without_masks,
        predict,
        PROBLEMS,
        "at alpha = 0 the prediction is the network",
    ),
)

LAWS: tuple[Law, ...] = (*SPECTRAL, *EXPECTED_RADII, *MOMENTS)
