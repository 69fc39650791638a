"""Laws of ReLU networks: Lipschitz constants, certificates, balls, and the ladder of random-mask bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from theory.laws import balls, gradients
from theory.laws import relu as laws
from theory.laws import strategies as draw
from theory.laws.law import Case, Kind, Law
from theory.relu import (
    bernstein_bound,
    best_bound,
    certified_radius,
    column_sum_bound,
    crown_certified_radius,
    eta_frobenius,
    eta_path,
    expected_path_norm,
    frobenius_bound,
    ladder,
    lipschitz_constants,
    local_certified_radius,
    local_lipschitz,
    margin_bounds,
    margin_lower_bounds,
    norm_product,
    path_norm,
    preactivation_bounds,
    second_moment_bound,
)
from theory.types import ReLUNetwork

PAIR = (0, 1)
ANY = draw.relu_networks()
NETS = draw.relu_networks(max_hidden=3)
LINEAR = draw.relu_networks(max_depth=1)


Drawn = Mapping[str, st.SearchStrategy[Any]]  # further arguments of a check, by name


@st.composite
def _net(
    draw_from: st.DrawFn,
    nets: st.SearchStrategy[ReLUNetwork],
    more: Drawn,
    *,
    points: int = 0,
    name: str = "x",
    scales: tuple[float, ...] = (1.0,),
) -> Case:
    """A network, further arguments, and so many inputs for it, if ``points`` is not 0."""
    net = draw_from(nets)
    case = {"net": net} | {key: draw_from(strategy) for key, strategy in more.items()}
    if points:
        case[name] = draw_from(draw.arrays((points, net.weights[0].shape[1]), scales=scales))
    return case


@st.composite
def _masked(draw_from: st.DrawFn, nets: st.SearchStrategy[ReLUNetwork] | None, more: Drawn) -> Case:
    """A network, its sparsities, the pair of classes, and further arguments."""
    net, alphas = draw_from(draw.masked_networks(nets))
    drawn = {key: draw_from(strategy) for key, strategy in more.items()}
    return {"net": net, "alphas": alphas, "pair": PAIR} | drawn


@st.composite
def _thinned(draw_from: st.DrawFn) -> Case:
    net = draw_from(draw.relu_networks(width=draw_from(st.integers(1, 2)), classes=2, max_hidden=2))
    keep = tuple(draw_from(draw.arrays(w.shape)) for w in net.weights[:-1])
    x = draw_from(draw.arrays((2, net.weights[0].shape[1])))
    return {"net": net, "keep": keep, "x": x, "p": draw_from(draw.attack_norms())}


@st.composite
def _rising(draw_from: st.DrawFn) -> Case:
    """Sparsities, and by what share of what is left each hidden one rises."""
    net, alphas = draw_from(draw.masked_networks(ANY))
    rise = np.array([draw_from(st.floats(0, 1)) for _ in alphas[:-1]])
    return {"net": net, "alphas": alphas, "rise": rise, "pair": PAIR}


def _falls(rung: Callable, net: ReLUNetwork, alphas: np.ndarray, rise: np.ndarray, pair: tuple[int, int]):
    higher = np.minimum(alphas + (1 - alphas) * np.append(rise, 0.0), 1.0)
    return laws.law_non_increasing(rung, net, alphas, higher, pair)


def unmasked_last_layer(alphas: np.ndarray) -> np.ndarray:
    """The sparsity of the last layer only, the hidden ones 0."""
    return np.append(np.zeros(len(alphas) - 1), alphas[-1])


def closed_column_sums(net: ReLUNetwork, alphas: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """The bound E||v||_1 prod_j (1 - alpha_j) max_u sum_v |W_uv|, a closed form between P1 and M."""
    return column_sum_bound(net, unmasked_last_layer(alphas), pair) * np.prod(1 - alphas[:-1])


def _eta(rung: Callable) -> Callable:
    """A check of eta as the relative fall of this rung."""
    return lambda eta, **case: laws.law_factor(rung, eta, **case)


def _dominates(larger: Callable) -> Callable:
    """A check that a rung is at most this one."""
    return lambda smaller, **case: laws.law_dominates(smaller, larger, **case)


def _law(
    name: str, kind: Kind, check: Callable, formula: Callable, cases: st.SearchStrategy, statement: str
) -> Law:
    return Law(f"relu.{name}", statement, kind, check, formula, cases)


P = {"p": draw.attack_norms()}
RADII = st.tuples(*[st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0])] * 2).map(np.array)
NET, NET_1 = _net(NETS, P), _net(LINEAR, P)
POINTS, POINTS_1 = _net(NETS, P, points=2), _net(LINEAR, P, points=4)
BALL, BALL_1 = (_net(nets, P | {"radius": RADII}, points=2) for nets in (NETS, LINEAR))
LAYERS = st.builds(
    lambda case, layer: case | {"layer": layer % len(case["net"].weights)},
    _net(ANY, P),
    st.integers(0, 5),
)
TINY, DEEP = _masked(None, {}), _masked(draw.relu_networks(max_depth=4), {})
L2, LINF = (_masked(None, {"p": st.just(p)}) for p in (2.0, math.inf))

CONSTANTS = [("norm-product", norm_product), ("path-norm", path_norm), ("lipschitz", lipschitz_constants)]
CERTIFICATES = [
    ("certificate", certified_radius),
    ("local-certificate", local_certified_radius),
    ("crown-certificate", crown_certified_radius),
]
RUNGS = [
    ("F", frobenius_bound, 2.0),
    ("P2", second_moment_bound, 2.0),
    ("B", bernstein_bound, 2.0),
    ("P1-l2", expected_path_norm, 2.0),
    ("P1", expected_path_norm, math.inf),
    ("M", column_sum_bound, math.inf),
]

LIPSCHITZ: tuple[Law, ...] = (
    *(
        _law(
            name,
            "bound",
            laws.law_bounds_every_gradient,
            formula,
            NET,
            "sup ||grad(g_i - g_k)||_q <= L[i, k]",
        )
        for name, formula in CONSTANTS
    ),
    *(
        _law(
            f"{name}-linear",
            "identity",
            laws.law_exact_for_linear,
            formula,
            NET_1,
            "d = 1: L = ||w_i - w_k||_q",
        )
        for name, formula in CONSTANTS
    ),
    *(
        _law(
            f"{name}-scale",
            "property",
            laws.law_homogeneous,
            formula,
            LAYERS,
            "twice a layer, twice the constant",
        )
        for name, formula in CONSTANTS
    ),
    _law(
        "path-norm-exact",
        "identity",
        laws.law_equals_exact_path_norm,
        path_norm,
        _net(draw.relu_networks(scales=draw.EXTREME), {}),
        "the path norm in rational arithmetic, rounded up; to 2^-299 of a layer's largest entry",
    ),
    _law(
        "path-norm-attained",
        "identity",
        gradients.is_attained,
        path_norm,
        _net(ANY, P, points=1),
        "positive weights attain the path norm",
    ),
    _law(
        "quotients",
        "bound",
        gradients.bounds_quotients,
        lipschitz_constants,
        _net(ANY, P, points=2, name="ends"),
        "|g(x) - g(x')| <= L ||x - x'||_p",
    ),
    _law(
        "path-norm-masks",
        "bound",
        gradients.falls_with_masks,
        path_norm,
        _thinned(),
        "masks never raise a path norm",
    ),
)

BALLS: tuple[Law, ...] = (
    *(
        _law(name, "bound", balls.certifies, formula, POINTS, "no attack succeeds inside the certified ball")
        for name, formula in CERTIFICATES
    ),
    *(
        _law(
            f"{name}-order",
            "bound",
            balls.improves_on_global,
            formula,
            POINTS,
            "never below the global certificate",
        )
        for name, formula in CERTIFICATES[1:]
    ),
    _law(
        "certificate-linear",
        "identity",
        balls.equals_linear_radius,
        certified_radius,
        POINTS_1,
        "d = 1: exact radius",
    ),
    _law(
        "margins",
        "bound",
        balls.bounds_margins_at_points,
        margin_lower_bounds,
        _net(draw.relu_networks(scales=draw.EXTREME), {}, points=2, scales=draw.EXTREME),
        "float64 margins less their error <= rational margins",
    ),
    _law(
        "preactivations",
        "property",
        balls.encloses_preactivations,
        preactivation_bounds,
        BALL,
        "z in [l, u] on the ball",
    ),
    _law(
        "crown-margins",
        "bound",
        balls.bounds_margins,
        margin_bounds,
        BALL,
        "CROWN <= rational margins on the ball",
    ),
    _law(
        "crown-linear",
        "identity",
        balls.equals_linear_margins,
        margin_bounds,
        BALL_1,
        "d = 1: CROWN is exact",
    ),
    _law(
        "local-lipschitz",
        "bound",
        balls.bounds_gradients,
        local_lipschitz,
        BALL,
        "gradients on the ball <= Fast-Lip <= global constant",
    ),
)

MASKS: tuple[Law, ...] = (
    *(
        _law(
            name,
            "bound",
            laws.law_bounds_expected_supremum,
            rung,
            L2 if p == 2 else LINF,
            f"E sup ||J||_{2 if p == 2 else 1} <= {name.split('-')[0]}",
        )
        for name, rung, p in RUNGS
    ),
    *(
        _law(
            f"{name}-product",
            "bound",
            laws.law_bounds_expected_norm_product,
            rung,
            L2 if p == 2 else LINF,
            f"E ||v|| prod_j ||W_j * M_j|| <= {name}",
        )
        for name, rung, p in RUNGS
        if name in ("F", "B", "M")
    ),
    *(
        _law(
            f"{name}-dense",
            "bound",
            gradients.is_global_without_masks,
            rung,
            _masked(NETS, {"p": st.just(p)}),
            f"sup ||grad|| <= {name.split('-')[0]} at alpha = 0; 0 without a layer",
        )
        for name, rung, p in RUNGS
    ),
    *(
        _law(f"{name}-falls", "bound", _falls, rung, _rising(), f"{name} falls in every hidden alpha_j")
        for name, rung in [
            ("F", frobenius_bound),
            ("P2", second_moment_bound),
            ("P1", expected_path_norm),
            ("M", column_sum_bound),
        ]
    ),
    *(
        _law(
            f"{name}-pair",
            "identity",
            gradients.ignores_order,
            rung,
            DEEP,
            f"{name} of (i, k) is that of (k, i)",
        )
        for name, rung, _ in RUNGS
        if name != "P1-l2"
    ),
    *(
        _law(
            f"{small}<={large}",
            "bound",
            _dominates(larger),
            smaller,
            DEEP,
            f"{small} <= {large}, for every net and alpha",
        )
        for small, smaller, large, larger in [
            ("P1", expected_path_norm, "M", column_sum_bound),
            ("P2", second_moment_bound, "F", frobenius_bound),
            ("B", bernstein_bound, "F", frobenius_bound),
            ("P1", expected_path_norm, "rows", closed_column_sums),
            ("rows", closed_column_sums, "M", column_sum_bound),
        ]
    ),
    _law(
        "P1-exact",
        "identity",
        laws.law_equals_expected_path_norm,
        expected_path_norm,
        TINY,
        "P1 = E path norm",
    ),
    _law(
        "P2-exact",
        "identity",
        laws.law_squares_to_second_moment,
        second_moment_bound,
        TINY,
        "P2^2 = E (path norm)^2",
    ),
    _law("eta-F", "identity", _eta(frobenius_bound), eta_frobenius, DEEP, "F = c (1 - eta)"),
    _law("eta-P1", "identity", _eta(expected_path_norm), eta_path, DEEP, "P1 = c (1 - eta)"),
    _law(
        "best",
        "bound",
        lambda best, net, alphas, pair, p: laws.law_bounds_expected_supremum(
            partial(best, p=p), net, alphas, pair, p=p
        ),
        best_bound,
        _masked(None, P),
        "E sup ||J||_q <= the smallest rung",
    ),
    _law(
        "best-smallest",
        "property",
        lambda best, **case: gradients.is_smallest(best, ladder, **case),
        best_bound,
        _masked(ANY, P),
        "the best bound is the smallest rung",
    ),
    *(
        _law(
            f"{name}-path-norm",
            "identity",
            gradients.equals_dense_path_norm,
            rung,
            _net(ANY, {"pair": st.just(PAIR), "p": st.just(p)}),
            f"{name} at alpha = 0 is the path norm",
        )
        for name, rung, p in [("P1", expected_path_norm, math.inf), ("P2", second_moment_bound, 2.0)]
    ),
)

LAWS: tuple[Law, ...] = (*LIPSCHITZ, *BALLS, *MASKS)
