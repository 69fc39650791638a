"""The networks and examples of the benchmark of certificates, and how large a run is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, initialise, relu_network
from empirical.measurement import measure
from empirical.pruning import magnitude_masks
from empirical.training.train import Recipe, train
from theory.types import ReLUNetwork

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """How large a run is.

    ``few`` examples go to methods that optimise the slopes of every example, by ``steps`` steps (auto_LiRPA's
    default); ``repeats`` rounds are counted after the first one, or that one if there is no other;
    ``product`` is the side of the matrices that measure the machine.
    """

    hidden: tuple[int, ...] = (300, 100)
    epochs: int = 3
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
    examples: int = 100
    few: int = 10
    lipschitz_examples: int = 5
    samples: int = 2000
    steps: int = 20
    repeats: int = 3
    product: int = 1536


QUICK = Setup(
    hidden=(12, 8),
    epochs=2,
    sparsities=(0.0, 0.5),
    examples=3,
    few=1,
    lipschitz_examples=1,
    samples=50,
    steps=2,
    repeats=0,
    product=64,
)


@dataclass(frozen=True)
class Case:
    """One trained network, float64, and its first correctly classified test examples."""

    sparsity: float
    ensemble: MLPEnsemble
    x: Tensor
    y: Tensor

    @property
    def net(self) -> ReLUNetwork:
        """The network as arrays."""
        return relu_network(self.ensemble, 0)

    @property
    def widths(self) -> list[int]:
        """Inputs, hidden units and outputs."""
        return [self.ensemble.inputs, *(weight.shape[1] for weight in self.ensemble.weights)]

    def attacked(self, data: Dataset, *, p: float) -> Tensor:
        """The smallest l_p distance at which an attack of :func:`empirical.measurement.measure` succeeds."""
        here = replace(data, x_test=self.x.numpy(), y_test=self.y.numpy())
        return torch.tensor(measure(self.ensemble, here, eps=0.1).radius[p, "best"][0])


def fully_connected(widths: Sequence[int]) -> nn.Sequential:
    """The usual module of linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cases(data: Dataset, setup: Setup) -> list[Case]:
    """One network and its layer-wise magnitude-pruned versions, each from the one before, trained again."""
    x, y = torch.tensor(data.x_train, dtype=torch.float32), torch.tensor(data.y_train)
    x_test, y_test = torch.tensor(data.x_test), torch.tensor(data.y_test)
    net = initialise((x.shape[1], *setup.hidden, data.classes), seeds=[0], device=CPU)
    found = []
    for sparsity in setup.sparsities:
        net = net.masked(magnitude_masks(net, sparsity=sparsity))
        net = train(net, x, y, Recipe(epochs=setup.epochs), seeds=[0])
        exact = net.to(dtype=torch.float64, device=CPU)
        rows = (exact.logits(x_test)[0].argmax(1) == y_test).nonzero()[: setup.examples, 0]
        found.append(Case(sparsity, exact, x_test[rows], y_test[rows]))
    return found
