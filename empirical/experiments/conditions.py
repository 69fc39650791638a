"""How a network comes to every sparsity of an experiment: one function per condition.

====================  ==================================================================================
condition             what stands at sparsity s
====================  ==================================================================================
``dense``             nothing pruned, but trained on as long as the pruned networks: their fair reference
``magnitude``         the smallest weights of every layer removed, retrained, from one sparsity to the next
``global``            the same with one threshold for all layers
``one-shot``          the smallest weights of every layer of the dense network removed, not retrained
``random``            random masks (the theorem's own assumption) on the dense network, not retrained
``random-retrained``  random masks, nested, retrained from one sparsity to the next
``lottery``           the masks of ``magnitude``; weights rewound to their initial values, trained afresh
``small-dense``       a dense network with as many weights, trained as long
====================  ==================================================================================

Every network depends on its seed alone: the seed draws the initial weights, and seeds derived from it the
order of the examples at every level, equal for all conditions, and the random masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, initialise
from empirical.experiments.specification import Experiment
from empirical.pruning import bernoulli_masks, magnitude_masks
from empirical.training import Recipe, train
from theory.types import InvalidInput

# Conditions whose networks follow from the dense ones without training.
UNTRAINED = ("one-shot", "random")


@dataclass(frozen=True)
class Bench:
    """What the networks of one block of seeds are made from: the experiment, its training data, a device."""

    experiment: Experiment
    data: Dataset
    seeds: tuple[int, ...]
    device: torch.device

    @property
    def widths(self) -> list[int]:
        """Widths of a fully connected network, from inputs to outputs."""
        network = self.experiment.network
        outputs = 1 if network.kind == "linear-binary" else self.data.classes
        return [self.data.x_train.shape[1], *network.hidden, outputs]

    def initial(self) -> Ensemble:
        """Untrained networks, one per seed."""
        return initialise(self.widths, seeds=self.seeds, device=self.device)

    def train(self, networks: Ensemble, recipe: Recipe, *, level: int) -> Ensemble:
        """The networks after one more training, in the example order of this level."""
        x = torch.tensor(self.data.x_train, dtype=torch.float32, device=self.device)
        y = torch.tensor(self.data.y_train, device=self.device)
        order = [derived_seed(seed, 1, level) for seed in self.seeds]
        return train(networks, x, y, recipe, seeds=order)

    def mask_seeds(self) -> list[int]:
        """Seeds of the random masks: the same at every sparsity, so that masks are nested."""
        return [derived_seed(seed, 2, 0) for seed in self.seeds]


def derived_seed(seed: int, purpose: int, level: int) -> int:
    """A seed for one purpose, statistically independent of those for others."""
    return int(np.random.SeedSequence([seed, purpose, level]).generate_state(1, np.uint32)[0])


def dense_networks(bench: Bench) -> Ensemble:
    """What every condition starts from: dense networks after the first training."""
    return bench.train(bench.initial(), bench.experiment.first, level=0)


def next_networks(
    bench: Bench, condition: str, *, level: int, dense: Ensemble, previous: Ensemble
) -> Ensemble:
    """The networks of ``condition`` at sparsity number ``level`` >= 1.

    ``dense`` are those of :func:`dense_networks`, ``previous`` those of the level before.
    """
    sparsity, retrain = bench.experiment.sparsities[level], bench.experiment.retrain
    if condition == "dense":
        return bench.train(previous, retrain, level=level)
    if condition == "one-shot":
        return dense.masked(magnitude_masks(dense, sparsity=sparsity))
    if condition == "random":
        return dense.masked(bernoulli_masks(dense, sparsity=sparsity, seeds=bench.mask_seeds()))
    masks: Sequence[Tensor]
    if condition == "magnitude":
        masks = magnitude_masks(previous, sparsity=sparsity)
    elif condition == "random-retrained":
        masks = bernoulli_masks(previous, sparsity=sparsity, seeds=bench.mask_seeds())
    else:
        raise InvalidInput(f"condition {condition!r} cannot be trained yet")
    return bench.train(previous.masked(tuple(masks)), retrain, level=level)
