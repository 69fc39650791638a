"""How a network comes to every sparsity of an experiment: one rule per condition.

====================  ==================================================================================
condition             what stands at sparsity s
====================  ==================================================================================
``dense``             nothing pruned, but trained on as long as the pruned networks: their fair reference
``magnitude``         the smallest weights of every layer removed, retrained, from one sparsity to the next
``global``            the same with one threshold for all layers
``n-of-4``            N:M sparsity, retrained: of every 4 consecutive inputs of an output the smallest weights
                      removed; at s = 0.5 the 2:4 of sparse tensor cores. s is a multiple of 1/4
``n-of-16``           the same of every 16, in multiples of 1/16
``n-of-4-shuffled``   the same with every layer's inputs put in a random order before they are grouped;
                      ``n-of-16-shuffled`` likewise
``units``             the weakest hidden units of an ``mlp`` removed whole, retrained, down to the widths of
                      ``small-dense``
``one-shot``          the smallest weights of every layer of the dense network removed, not retrained
``random``            random masks (the theorem's own assumption) on the dense network, not retrained
``random-retrained``  random masks, nested, retrained from one sparsity to the next
``lottery``           the smallest weights of every layer removed, what is left rewound to its initial values
                      and trained afresh
``small-dense``       a dense network with as many weights, all widths scaled alike, trained as long
``surgery``           dynamic network surgery whose thresholds remove the share s at its start
``l1``                s is the factor of an L1 term on the weights; those it makes zero are removed
``activation``        s is the factor of an L1 term on the inputs of the last layer; no weight is removed
====================  ==================================================================================

Every network depends on its seed alone: the seed draws the initial weights, and seeds derived from it the
order of the examples at every level, equal for all conditions but ``surgery``, whose coins come from the
same generator, and the random masks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from empirical.activations import share_of_zero_activations
from empirical.datasets import Dataset
from empirical.ensembles import Ensemble, MLPEnsemble, initialise, initialise_modules
from empirical.experiments.architectures import (
    Channels,
    channels_of,
    image_shape,
    module_builder,
    smaller,
    widths_of,
)
from empirical.experiments.checkpoints import halved
from empirical.experiments.specification import CONVOLUTIONAL_KINDS, N_OF_M, Experiment, Network
from empirical.pruning import (
    bernoulli_masks,
    global_magnitude_masks,
    magnitude_masks,
    n_of_m_masks,
    threshold_masks,
    unit_masks,
)
from empirical.runs.deadline import NEVER, Deadline
from empirical.runs.locations import Location
from empirical.training.checkpoints import ForeignCheckpoint
from empirical.training.recipe import Recipe
from empirical.training.train import TrainingDiverged, train
from theory.types import InvalidInput

# Conditions whose networks follow from the dense ones without training.
UNTRAINED = ("one-shot", "random")
# Conditions whose networks at a sparsity do not start from those at the one before.
APART = (*UNTRAINED, "small-dense", "surgery")
# Conditions whose networks are more than what the last training, or the only one, leaves.
FINISHED_LATER = ("small-dense", "l1")
# Hears what is being done, for a progress bar.
Tell = Callable[[str], None]
# Seconds of training between two files it could go on from.
SPACING = 60.0


@dataclass(frozen=True)
class Bench:
    """What the networks of one block of seeds are made from: the experiment, its training data, a device.

    A training that the deadline ends, or that is killed, goes on from a file in the folder ``unfinished``.
    ``tell`` hears of every epoch.
    """

    experiment: Experiment
    data: Dataset
    seeds: tuple[int, ...]
    device: torch.device
    deadline: Deadline = NEVER
    unfinished: Location | None = None
    tell: Tell = lambda text: None

    def initial(self, network: Network | None = None) -> Ensemble:
        """Untrained networks, one per seed, of the experiment's architecture or another one."""
        network = network or self.experiment.network
        classes = self.data.classes
        if network.kind in CONVOLUTIONAL_KINDS:
            return self._modules(network)
        widths = widths_of(network, inputs=self.data.x_train.shape[1], classes=classes)
        return initialise(widths, seeds=self.seeds, device=self.device)

    def train(self, networks: Ensemble, recipe: Recipe, *, level: int, keep_end: bool = False) -> Ensemble:
        """The networks after one more training, in the example order of this level.

        ``keep_end`` if another training of the same networks starts from it. A file of another start, as
        rounding on another device gives one, is dropped: it only saves time.
        Raises: OutOfTime once the deadline is over; the training goes on from there in another call.
        TrainingDiverged naming the seeds of those that diverged.
        """
        x = torch.tensor(self.data.x_train, dtype=torch.float32, device=self.device)
        y = torch.tensor(self.data.y_train, device=self.device)
        order = [derived_seed(seed, 1, level) for seed in self.seeds]
        checkpoint = self.unfinished / f"{level:02d}.safetensors" if self.unfinished else None

        def trained() -> Ensemble:
            epochs = itertools.count(1)
            return train(
                networks,
                x,
                y,
                recipe,
                seeds=order,
                after_epoch=lambda: self.tell(f"epoch {next(epochs)} of {recipe.epochs}"),
                checkpoint=checkpoint,
                spacing=SPACING,
                keep_end=keep_end,
                deadline=self.deadline,
            )

        try:
            try:
                found = trained()
            except ForeignCheckpoint:
                assert checkpoint
                checkpoint.unlink(missing_ok=True)
                found = trained()
        except TrainingDiverged as error:
            lost = [str(seed) for k, seed in enumerate(self.seeds) if k not in error.members]
            told = f"seed {', '.join(lost)} diverged at learning_rate {recipe.learning_rate:g}"
            left = error.survivors and self._stored(error.survivors)
            raise TrainingDiverged(told, members=error.members, survivors=left) from error
        return self._stored(found)

    def _stored(self, networks: Ensemble) -> Ensemble:
        """The networks as the experiment stores them."""
        return halved(networks) if self.experiment.compact else networks

    def mask_seeds(self) -> list[int]:
        """Seeds of random masks and orders: the same at every sparsity, so that masks are nested."""
        return [derived_seed(seed, 2, 0) for seed in self.seeds]

    @functools.cached_property
    def channels(self) -> Channels | None:
        """The colour channels of the training images, for the networks of images in colour; None for others.

        Raises: InvalidInput if the data are of another size, or channels come last.
        """
        check_images(self.experiment.network, self.data)
        colours = image_shape(self.experiment.network)[0]
        return channels_of(self.data.x_train, colours) if colours > 1 else None

    def _modules(self, network: Network) -> Ensemble:
        """Networks of images. Raises: InvalidInput as :attr:`channels`."""
        made = module_builder(network, classes=self.data.classes, channels=self.channels)
        return initialise_modules(made, shape=image_shape(network), seeds=self.seeds, device=self.device)


def check_images(network: Network, data: Dataset) -> None:
    """Raises: InvalidInput if the data are no images of the size that networks of this kind take."""
    stored, shape = data.shape, image_shape(network)
    if math.prod(stored) != math.prod(shape) or (len(stored) == 3 and stored != shape):
        raise InvalidInput(
            f"data {data.name} has examples of shape {stored}; network.kind {network.kind!r} takes {shape}, "
            "channels first"
        )


def derived_seed(seed: int, purpose: int, level: int) -> int:
    """A seed for one purpose, statistically independent of those for others."""
    return int(np.random.SeedSequence([seed, purpose, level]).generate_state(1, np.uint32)[0])


def dense_networks(bench: Bench) -> Ensemble:
    """What every condition starts from: dense networks after the first training."""
    return bench.train(bench.initial(), bench.experiment.first, level=0)


def blank_networks(bench: Bench, condition: str, *, level: int) -> Ensemble:
    """Networks of the architecture that ``condition`` has at this level, whatever their values."""
    if condition != "small-dense" or not level:
        return bench.initial()
    return bench.initial(_small_dense(bench, level))


def _small_dense(bench: Bench, level: int) -> Network:
    """The smaller dense network that has as many weights as are left at this level."""
    experiment, data = bench.experiment, bench.data
    sparsity, inputs = experiment.sparsities[level], data.x_train.shape[1]
    return smaller(experiment.network, sparsity=sparsity, inputs=inputs, classes=data.classes)


def next_networks(
    bench: Bench, condition: str, *, level: int, dense: Ensemble, previous: Ensemble
) -> Ensemble:
    """The networks of ``condition`` at sparsity number ``level`` >= 1.

    ``dense`` are those of :func:`dense_networks`, ``previous`` those of the level before.
    """
    s, retrain = bench.experiment.sparsities[level], bench.experiment.retraining(condition, level=level)
    match condition:
        case "dense" | "activation":
            return bench.train(previous, retrain, level=level)
        case "one-shot":
            return dense.masked(magnitude_masks(dense, sparsity=s))
        case "random":
            return dense.masked(bernoulli_masks(dense, sparsity=s, seeds=bench.mask_seeds()))
        case "magnitude":
            pruned = previous.masked(magnitude_masks(previous, sparsity=s))
        case "global":
            pruned = previous.masked(global_magnitude_masks(previous, sparsity=s))
        case "n-of-4" | "n-of-16" | "n-of-4-shuffled" | "n-of-16-shuffled":
            seeds = bench.mask_seeds() if condition.endswith("shuffled") else None
            pruned = previous.masked(n_of_m_masks(previous, sparsity=s, m=N_OF_M[condition], seeds=seeds))
        case "units":
            assert isinstance(previous, MLPEnsemble)
            pruned = previous.masked(unit_masks(previous, kept=_small_dense(bench, level).hidden))
        case "random-retrained":
            pruned = previous.masked(bernoulli_masks(previous, sparsity=s, seeds=bench.mask_seeds()))
        case "lottery":
            rewound = bench.initial().masked(magnitude_masks(previous, sparsity=s))
            return bench.train(rewound, bench.experiment.first, level=level)
        case "small-dense":
            blank = blank_networks(bench, condition, level=level)
            small = bench.train(blank, bench.experiment.first, level=0, keep_end=True)
            return bench.train(small, retrain, level=level)
        case "surgery":
            return bench.train(dense, retrain, level=level)
        case "l1":
            thinned = bench.train(previous, retrain, level=level)
            return thinned.masked(threshold_masks(thinned))
        case _:
            raise InvalidInput(f"condition is {condition!r}; it is not known")
    return bench.train(pruned, retrain, level=level)


def achieved_sparsity(bench: Bench, condition: str, networks: Ensemble) -> list[float]:
    """What a condition's sparsity came to, per network.

    The share of the dense network's weights that are gone; under ``activation`` the share of the inputs of
    the last layer that are exactly 0, over the test examples.
    """
    if condition == "activation":
        like = networks.weights[0]
        x = torch.tensor(bench.data.x_test, dtype=like.dtype, device=like.device)
        return share_of_zero_activations(networks, x).tolist()
    whole = sum(mask[0].numel() for mask in bench.initial().masks)
    kept = torch.stack([mask.flatten(1).sum(1) for mask in networks.masks]).sum(0)
    return (1 - kept.double() / whole).tolist()
