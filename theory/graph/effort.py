"""What a proof about a graph costs, so that one that would take hours can be left out."""

from __future__ import annotations

from math import prod

from theory.graph.network import Activation, Conv2d, Dense, Graph


def relaxation_products(graph: Graph) -> float:
    """Multiplications of one linear relaxation of the graph at one example, an estimate.

    Every unit of every ReLU, and every score, is carried back through all layers below it.
    Source: this project.
    """
    below = total = 0.0
    for node in graph.nodes:
        match node.operation:
            case Dense(weight):
                below += weight.numel()
            case Conv2d(weight):
                below += weight.numel() * prod(node.shape[1:])
            case Activation():
                total += prod(node.shape) * below
    return total + graph.classes * below
