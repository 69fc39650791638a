"""Bounds on what random masks do to the Lipschitz constant of a network of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory import graph as graphs
from theory.graph.masks import hidden_operators, repeated_parameters
from theory.graph.network import Dense, Graph
from theory.relu import active_ladder, ladder
from theory.types import ReLUNetwork

Rungs = Callable[[float], Mapping[str, Float[Array, " a"]]]


def unmaskable(graph: Graph) -> str:
    """Why no bound applies to random masks of the hidden weights; empty where one does."""
    if not isinstance(graph.nodes[-1].operation, Dense) or not hidden_operators(graph):
        return "the bounds need a dense last layer above others whose weights can be masked"
    if repeated := sorted(repeated_parameters(graph)):
        return f"the bounds need independent masks, and layers behind each other share {', '.join(repeated)}"
    return ""


def mask_rungs(
    graph: Graph, layers: ReLUNetwork | None, alphas: Sequence[float], pair: tuple[int, int]
) -> Rungs | None:
    """Upper bounds on E sup ||grad(g_i - g_k)||_q by name, as a function of p; None where none applies.

    Every hidden weight is removed with probability alpha. ``layers`` is the graph where it is fully
    connected, which has the whole ladder; other graphs have the rungs F and P1. :func:`unmaskable` says why
    none applies.
    """
    if unmaskable(graph):
        return None
    return graph_rungs(graph, alphas, pair) if layers is None else layer_rungs(layers, alphas, pair)


def layer_rungs(layers: ReLUNetwork, alphas: Sequence[float], pair: tuple[int, int]) -> Rungs:
    """The whole ladder of a network with hidden layers."""
    return lambda p: ladder(layers, _settings(layers, alphas), pair, p=p)


def active_rungs(
    layers: ReLUNetwork, alphas: Sequence[float], pair: tuple[int, int], active: Sequence[int], *, p: float
) -> Mapping[str, Float[Array, " a"]]:
    """As :func:`mask_rungs`, over patterns with at most ``active`` active units a layer alone."""
    return active_ladder(layers, _settings(layers, alphas), pair, active, p=p)


def most_active(layers: ReLUNetwork, x: Float[Array, "m n"]) -> list[int]:
    """The largest number of active units of each hidden layer at any of the examples."""
    counts, hidden = [], x
    for weight, bias in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        counts.append(int((hidden > 0).sum(axis=1).max()))
    return counts


def _settings(layers: ReLUNetwork, alphas: Sequence[float]) -> Float[Array, "a l"]:
    """The rate of every layer: that of the last one is 0."""
    return np.array([[alpha] * (len(layers.weights) - 1) + [0.0] for alpha in alphas])


def graph_rungs(graph: Graph, alphas: Sequence[float], pair: tuple[int, int]) -> Rungs:
    """Rungs P1, in l_2 too, for ||J||_2 <= ||J||_1, and F of a graph that ends in a dense layer."""
    hidden = len(hidden_operators(graph))

    def rungs(p: float) -> Mapping[str, Float[Array, " a"]]:
        named = {"P1": graphs.expected_path_norm} | ({"F": graphs.frobenius_bound} if p == 2 else {})
        return {
            name: np.array([rung(graph, [alpha] * hidden, pair) for alpha in alphas])
            for name, rung in named.items()
        }

    return rungs
