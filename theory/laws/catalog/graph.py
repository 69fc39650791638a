"""Laws of networks as graphs, hunted on a convolution, a residual block, a pooling and a dense layer.

Cases hold the arrays of the network, which the hunt changes; each check builds the graph from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from theory.graph import (
    Ball,
    Graph,
    certified_radius,
    from_relu_network,
    lipschitz_constants,
    local_lipschitz,
    margin_bounds,
    node_bounds,
    norm_product,
    path_norm,
)
from theory.graph.affine import points_only
from theory.graph.builder import Builder, Place
from theory.graph.entries import entry_bounds
from theory.graph.lipschitz import label_differences
from theory.graph.network import adjoint
from theory.graph.relaxation import Interval
from theory.laws import graph as laws
from theory.laws import relu as relu_laws
from theory.laws import strategies as draw
from theory.laws.adjoint import law_contains_entries
from theory.laws.law import Case, Kind, Law
from theory.norms import dual
from theory.types import ReLUNetwork

SIDES = (1, 3, 3)  # of an input image


def residual_network(
    kernel: np.ndarray, skip: np.ndarray, head: np.ndarray, bias: np.ndarray, *, pool: bool
) -> Graph:
    """conv -> [max pool] -> x + relu(conv x) -> dense: of images (1, 3, 3), kernel (2, 1, 2, 2).

    skip is (2, 2, 3, 1), head (c, 8) without pooling and (c, 4) with it, bias (2,) that of the first layer.
    """
    builder = Builder(SIDES, torch.float64, torch.device("cpu"))
    x = Place(0)
    builder.output = (2, 2, 2)
    x = Place(builder.conv2d(x, torch.tensor(kernel), torch.tensor(bias), 1, 0))
    if pool:
        builder.output = (2, 2, 1)
        x = Place(builder.max_pool2d(x, (1, 2), 1, 0))
    inner = Place(builder.relu(Place(builder.conv2d(x, torch.tensor(skip), None, 1, (1, 0)))))
    x = Place(builder.plus(inner, x))
    builder.output = (head.shape[1],)
    x = Place(builder.reshape(x))
    builder.output = (len(head),)
    return builder.finish(Place(builder.linear(x, torch.tensor(head), None)))


@st.composite
def _balls(draw_from: st.DrawFn) -> Case:
    """The arrays of a network, two images, and the balls around them."""
    pool = draw_from(st.booleans())
    shapes = {
        "kernel": (2, 1, 2, 2),
        "skip": (2, 2, 3, 1),
        "head": (draw_from(st.integers(2, 3)), 4 if pool else 8),
        "bias": (2,),
        "x": (2, *SIDES),
    }
    case: Case = {name: draw_from(draw.arrays(shape)) for name, shape in shapes.items()}
    radius = np.array([draw_from(st.sampled_from([0.0, 0.1, 0.5, 2.0])) for _ in range(2)])
    return case | {"pool": pool, "radius": radius, "p": draw_from(draw.attack_norms())}


@st.composite
def _dense(draw_from: st.DrawFn) -> Case:
    """A fully connected network of two inputs, an input, a radius, and a norm."""
    net = draw_from(draw.relu_networks(width=2, max_depth=2, max_hidden=3, scales=(1.0,)))
    radius = np.array([draw_from(st.sampled_from([0.1, 0.5, 2.0]))])
    return {"net": net, "x": draw_from(draw.arrays((1, 2))), "radius": radius}


def _on_balls(law: Callable) -> Callable[..., float | None]:
    """The check of a law on the graph of a case."""

    def check(
        formula: Callable,
        kernel: np.ndarray,
        skip: np.ndarray,
        head: np.ndarray,
        bias: np.ndarray,
        x: np.ndarray,
        radius: np.ndarray,
        *,
        pool: bool,
        p: float,
    ) -> float | None:
        graph = residual_network(kernel, skip, head, bias, pool=pool)
        return law(formula, graph, torch.tensor(x), torch.tensor(radius), p=p)

    return check


def _tensor(formula: Callable) -> Callable[..., Tensor]:
    """The formula with a tensor for its value, whatever the candidate gives."""
    return lambda *args, **kwargs: torch.as_tensor(formula(*args, **kwargs))


def _labels(graph: Graph, x: Tensor) -> Tensor:
    return graph.scores(x).argmax(1)


def _limits_margins(formula: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> float:
    return laws.law_margins_below_points(_tensor(formula), graph, x, _labels(graph, x), radius, p=p)


def _is_constant(formula: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> float:
    """The constant limits difference quotients and gradients."""
    y = _labels(graph, x)
    table = _tensor(formula)(graph, x, y, p=p, radius=radius)
    case = (lambda *_, **__: table), graph, x, y, radius
    return min(
        laws.law_bounds_difference_quotients(*case, p=p), laws.law_bounds_generic_gradients(*case, p=p)
    )


def _contains_entries(formula: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> None:
    bounds = node_bounds(graph, Ball(x, radius, dual(p))).intervals
    units = {i: bounds[graph.nodes[i].inputs[0]] for i in graph.activations}
    law_contains_entries(formula, graph, units, label_differences(graph, _labels(graph, x)))


def _is_global_constant(formula: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> float:
    def constants(graph: Graph, x: Tensor, y: Tensor, *, p: float, radius: Tensor) -> Tensor:
        return torch.as_tensor(formula(graph, p=p))[y]

    y = _labels(graph, x)
    return laws.law_bounds_difference_quotients(constants, graph, x, y, radius, p=p)


def _certifies(formula: Callable, graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> None:
    y = _labels(graph, x)
    laws.law_no_attack_inside(_tensor(formula)(graph, x, y, p=p), graph, x, y, p=p)


def _limits_exact_margins(formula: Callable, net: ReLUNetwork, x: np.ndarray, radius: np.ndarray) -> float:
    y = net.scores(x).argmax(axis=1)
    tensors = torch.tensor(x), torch.tensor(y)
    found = formula(from_relu_network(net), *tensors, p=math.inf, radius=torch.tensor(radius))
    return laws.law_margins_below_exact(np.asarray(found)[0], net, x[0], int(y[0]), float(radius[0]))


def _bounds_patterns(formula: Callable, net: ReLUNetwork, *, p: float) -> float:
    def constants(net: ReLUNetwork, *, p: float) -> np.ndarray:
        return np.asarray(formula(from_relu_network(net), p=p))

    return relu_laws.law_bounds_every_gradient(constants, net, p=p)


def sides(graph: Graph, x: Tensor, radius: Tensor, *, p: float) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper bounds of every node on the balls."""
    return [(b.lower, b.upper) for b in node_bounds(graph, Ball(x, radius, dual(p))).intervals]


def entry_sides(
    graph: Graph, units: dict[int, Interval], cotangents: Tensor, *, chords: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper bounds of every entry of every node of the adjoint."""
    reverse, (m, k, _) = adjoint(graph), cotangents.shape
    ball = Ball(cotangents.flatten(0, 1), torch.zeros(m * k, dtype=graph.dtype), 1.0)
    each = torch.arange(m).repeat_interleave(k)
    repeated = {i: z.take(each) for i, z in units.items()}
    found = node_bounds(reverse, ball, units=repeated, part=points_only(reverse))
    sides = (entry_bounds(reverse, i, found, units, chords=chords) for i in range(len(reverse.nodes)))
    return [(side.lower, side.upper) for side in sides]


def _law(
    name: str, kind: Kind, check: Callable, formula: Callable, cases: st.SearchStrategy, statement: str
) -> Law:
    return Law(f"graph.{name}", statement, kind, check, formula, cases)


BALLS = _balls()
NETS = st.fixed_dictionaries({"net": draw.relu_networks(max_hidden=3), "p": draw.attack_norms()})

LAWS: tuple[Law, ...] = (
    _law(
        "nodes",
        "property",
        _on_balls(laws.law_contains_values),
        sides,
        BALLS,
        "lower <= value <= upper at every node, on the ball",
    ),
    _law(
        "margins", "bound", _on_balls(_limits_margins), margin_bounds, BALLS, "CROWN <= margins on the ball"
    ),
    _law(
        "margins-exact",
        "bound",
        _limits_exact_margins,
        margin_bounds,
        _dense(),
        "CROWN <= least margin of the patterns in the ball",
    ),
    _law(
        "local-lipschitz",
        "bound",
        _on_balls(_is_constant),
        local_lipschitz,
        BALLS,
        "|margin(a) - margin(b)| <= L ||a - b||_p in the ball",
    ),
    _law(
        "entries",
        "property",
        _on_balls(_contains_entries),
        entry_sides,
        BALLS,
        "lower <= entry of a cotangent <= upper, whatever the open derivatives",
    ),
    *(
        _law(
            name,
            "bound",
            _on_balls(_is_global_constant),
            formula,
            BALLS,
            "|margin(a) - margin(b)| <= L ||a - b||_p everywhere",
        )
        for name, formula in [("norm-product", norm_product), ("path-norm", path_norm)]
    ),
    _law(
        "lipschitz",
        "bound",
        _bounds_patterns,
        lipschitz_constants,
        NETS,
        "sup ||grad(g_i - g_k)||_q <= L[i, k], over all patterns",
    ),
    _law(
        "certificate",
        "property",
        _on_balls(_certifies),
        certified_radius,
        BALLS,
        "no attack succeeds inside the certified ball",
    ),
)
