"""What is asked about a network of the user's own, and the network and examples as the theory takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from empirical.datasets import Examples
from empirical.own_network.loading import Network
from theory import graph as graphs
from theory.graph.masks import masked_operators, repeated_parameters
from theory.graph.network import Activation, Conv2d, Dense, Graph, Reshape, Source
from theory.types import InvalidInput, ReLUNetwork, check_labels, check_p, check_pair, check_sparsity

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Where no radius is asked for: 0, which is the gradient itself, and three in the range of usual attacks.
RADII = {math.inf: (0.0, 0.01, 0.03, 0.1), 2.0: (0.0, 0.1, 0.3, 1.0)}
# Radii tried for an example's certificate, and multiplications of one core's minute in float64: measured on
# LeNet-300-100 and on LeNet-5, whose local constants cost as much again as its certificates.
_TRIALS, _MINUTE, _MINUTE_OF_CONVOLUTIONS = 12, 3e11, 3e10
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Request:
    """What is asked about a network; equal requests about equal files give equal numbers.

    ``radii`` None stands for ``RADII``; ``shape`` None for the network's own, else the data's; ``pair`` None
    for the most common class and the class that most often comes second to it; ``steps`` > 0 adds
    certificates whose slopes are optimised by that many steps. ``crown`` is the number of examples, the first
    ones, of the certificates by linear relaxation and of the constants on balls; None: all.
    Raises: InvalidInput for no or repeated norms, or any other entry outside its range.
    """

    examples: int = 100
    norms: tuple[float, ...] = (math.inf, 2.0)
    radii: tuple[float, ...] | None = None
    alphas: tuple[float, ...] = ALPHAS
    pair: tuple[int, int] | None = None
    steps: int = 0
    crown: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if not self.norms or len(set(self.norms)) < len(self.norms):
            raise InvalidInput(f"norms is {list(self.norms)}; name inf, 2 or both, each once")
        for p in self.norms:
            check_p(p)
        for radius in self.radii or ():
            if not 0 <= radius < math.inf:
                raise InvalidInput(f"radius is {radius}; a ball needs a finite radius >= 0")
        for j, alpha in enumerate(self.alphas):
            check_sparsity(f"alphas[{j}]", alpha)
        if self.examples < 1:
            raise InvalidInput(f"examples is {self.examples}; use at least one")
        if self.steps < 0:
            raise InvalidInput(f"steps is {self.steps}; give 0 or more ascent steps")
        if self.crown is not None and self.crown < 0:
            raise InvalidInput(f"crown is {self.crown}; give 0 or more examples for linear relaxation")
        if self.crown is not None and self.crown > self.examples:
            raise InvalidInput(
                f"crown is {self.crown}, but examples is {self.examples}; ask for as many examples"
            )
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise InvalidInput(f"shape is {self.shape}; give the sides of one example, each >= 1")
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")

    def radii_of(self, p: float) -> tuple[float, ...]:
        """The radii of one norm, rising."""
        return tuple(sorted(set(RADII[p] if self.radii is None else self.radii)))


@dataclass(frozen=True)
class Problem:
    """A network as a graph, the examples it is asked about, and its layers if it is fully connected."""

    network: Network
    graph: Graph
    layers: ReLUNetwork | None
    examples: Examples
    x: Tensor
    y: Tensor

    @staticmethod
    def of(network: Network, data: Examples, request: Request, *, device: torch.device) -> Problem:
        """Read the network. Raises: InvalidInput if it does not fit the data, or is not understood."""
        examples = data.first(request.examples)
        shape = examples.fitted(request.shape or network.shape)
        graph = graphs.read(
            network.given or network.module, shape, dtype=DTYPES[request.dtype], device=device
        )
        x = torch.tensor(examples.x.reshape(-1, *shape))
        check_labels("y_test", data.y, n=len(data.y), classes=graph.classes)
        y = graph.check_labels(torch.tensor(examples.y), examples=len(x))
        return Problem(network, graph, fully_connected(graph), examples, graph.check_inputs(x), y)

    def pair(self, request: Request) -> tuple[int, int]:
        """The pair asked for, or the most common class and the most frequent runner-up on its examples."""
        classes = self.graph.classes
        if request.pair is not None:
            check_pair(request.pair, classes=classes)
            return request.pair
        common = int(self.y.bincount().argmax())
        scores = self.graph.scores(self.x[self.y == common])
        scores[:, common] = -math.inf
        return common, int(scores.argmax(1).bincount().argmax())


def fully_connected(graph: Graph) -> ReLUNetwork | None:
    """The layers of a graph that is linear layers with a ReLU between any two; None for any other.

    Also None unless every layer has weights of its own: what is said of layers is said of independent masks.
    """
    if repeated_parameters(graph):
        return None
    weights, biases, ready = [], [], True
    masked = masked_operators(graph)
    for place, node in enumerate(graph.nodes):
        if node.inputs not in ((), (place - 1,)):
            return None
        match node.operation:
            case Source() | Reshape():
                pass
            case Dense(weight) if ready and place in masked:
                bias = torch.zeros(len(weight)) if node.bias is None else node.bias.expand(len(weight))
                weights.append(weight.double().cpu().numpy())
                biases.append(bias.double().cpu().numpy())
                ready = False
            case Activation() if not ready:
                ready = True
            case _:
                return None
    return ReLUNetwork(tuple(weights), tuple(biases)) if weights and not ready else None


def minutes_each(problem: Problem, request: Request) -> float:
    """Minutes of one core in which linear relaxation certifies an example in all norms, an estimate."""
    each = graphs.relaxation_products(problem.graph) * _TRIALS * len(request.norms)
    convolves = any(isinstance(node.operation, Conv2d) for node in problem.graph.nodes)
    return each / (_MINUTE_OF_CONVOLUTIONS if convolves else _MINUTE)


def affordable(problem: Problem, request: Request) -> int:
    """How many of the examples linear relaxation can certify, in all norms, in about a minute of one core."""
    each = minutes_each(problem, request)
    return min(len(problem.y), int(1 / each)) if each else len(problem.y)
