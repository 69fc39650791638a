"""Laws of exact radii and exact local Lipschitz constants of small networks, against all patterns."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import strategies as st

from theory.laws import exact as laws
from theory.laws import strategies as draw
from theory.laws.law import Case, Kind, Law
from theory.laws.relu import attack_points
from theory.relu import exact_local_lipschitz, exact_radius, gradient_norms, local_lipschitz
from theory.types import ReLUNetwork

GAP = 1e-6
SECONDS = 5.0  # per input; a search that ends early still gives bounds
INSIDE = 1 - 1e-9  # of a radius: the rounding of points computed in float64 keeps them in the ball


@st.composite
def _case(draw_from: st.DrawFn, *, radii: tuple[float, ...]) -> Case:
    """A tiny network, one input, one radius and a norm; the label is the predicted one."""
    net = draw_from(
        draw.relu_networks(width=draw_from(st.integers(1, 2)), classes=2, max_hidden=3, scales=(1.0,))
    )
    x = draw_from(draw.arrays((1, net.weights[0].shape[1])))
    return {
        "net": net,
        "x": x,
        "radius": draw_from(st.sampled_from(radii)),
        "p": draw_from(draw.attack_norms()),
    }


def _labels(net: ReLUNetwork, x: np.ndarray) -> np.ndarray:
    return net.scores(x).argmax(axis=1)


def _is_radius(formula: Callable, net: ReLUNetwork, x: np.ndarray, *, radius: float, p: float) -> float:
    """Within the domain radius, the bounds enclose the radius, and the point reaches the upper one."""
    y = _labels(net, x)
    found = formula(net, x, y, p=p, gap=GAP, domain_radius=radius)
    laws.law_bounds_are_witnessed(found, net, x, y, p=p)
    return laws.law_radius_equals_enumeration(found, net, x, y, p=p, gap=GAP, domain_radius=radius)


def _is_constant(formula: Callable, net: ReLUNetwork, x: np.ndarray, *, radius: float, p: float) -> float:
    y = _labels(net, x)
    found = formula(net, x, y, p=p, radius=np.array([radius]), gap=GAP)
    return laws.law_lipschitz_equals_enumeration(found, net, x, y, np.array([radius]), p=p, gap=GAP)


def _is_in_order(formula: Callable, net: ReLUNetwork, x: np.ndarray, *, radius: float, p: float) -> float:
    y = _labels(net, x)
    pairs = np.array([(int(y[0]), k) for k in range(net.classes)])
    points = attack_points(net, x[0], INSIDE * radius, p=p)
    sampled = gradient_norms(net, points, pairs, p=p).max(axis=0)
    found = formula(net, x, y, p=p, radius=np.array([radius]), gap=GAP)
    interval = local_lipschitz(net, x, y, p=p, radius=np.array([radius]))
    return laws.law_lipschitz_sandwich(sampled, found, interval)


def _law(
    name: str, kind: Kind, check: Callable, formula: Callable, cases: st.SearchStrategy, statement: str
) -> Law:
    return Law(f"exact.{name}", statement, kind, check, formula, cases)


RADIUS = partial(exact_radius, time_limit=SECONDS)
LIPSCHITZ = partial(exact_local_lipschitz, time_limit=SECONDS)

LAWS: tuple[Law, ...] = (
    _law(
        "radius",
        "bound",
        _is_radius,
        RADIUS,
        _case(radii=(math.inf,)),
        "lower <= rho <= upper = a rational point's distance, over all patterns",
    ),
    _law(
        "radius-domain",
        "bound",
        _is_radius,
        RADIUS,
        _case(radii=(1e-3, 0.3, 5.0)),
        "lower <= min(rho, cap) <= upper",
    ),
    _law(
        "lipschitz",
        "bound",
        _is_constant,
        LIPSCHITZ,
        _case(radii=(1e-3, 0.1, 1.0, 10.0)),
        "lower <= steepest pattern that meets the ball <= upper",
    ),
    _law(
        "lipschitz-order",
        "bound",
        _is_in_order,
        LIPSCHITZ,
        _case(radii=(0.0, 0.1, 10.0)),
        "gradients in the ball <= upper <= Fast-Lip",
    ),
)
