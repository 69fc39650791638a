"""The networks of an experiment as they are built: at their own widths, or smaller with fewer weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import nn

from empirical.ensembles.modules import prunable_names
from empirical.experiments.specification import SCALED, Experiment, Network
from empirical.models import (
    VGG_GROUPS,
    count_weights,
    dense_small,
    lenet5,
    resnet,
    standardised,
    vgg_like,
)
from theory.types import InvalidInput

# Halvings of the interval of scales: widths up to 512 are told apart after ten, the rest costs nothing.
_HALVINGS = 30
_SHAPES = {"lenet-5": (1, 28, 28), "vgg": (3, 32, 32), "resnet-32": (3, 32, 32)}


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of every colour channel of the training images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channels_of(x: Float[Array, "n d"], channels: int) -> Channels:
    """The statistics of flat images, channels first; a channel without variation has standard deviation 1."""
    images = x.reshape(len(x), channels, -1)
    mean = images.mean(axis=(0, 2), dtype=np.float64)
    # The mean square needs no copy of the images in float64.
    square = np.einsum("ncd,ncd->c", images, images, dtype=np.float64) / (images.size / channels)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return Channels(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def image_shape(network: Network) -> tuple[int, int, int]:
    """The images a convolutional network takes, channels first."""
    return _SHAPES[network.kind]


def build(network: Network, *, classes: int, channels: Channels | None = None) -> nn.Sequential:
    """A convolutional network, untrained, its weights drawn from torch's global generator.

    Where ``channels`` is given, its first layer subtracts their mean and divides by their standard deviation.
    """
    if network.kind == "lenet-5":
        one, two, full = network.widths((20, 50, 500))
        return lenet5(channels=(one, two), hidden=full, classes=classes)
    if network.kind == "vgg":
        groups, (full,) = [network.widths(group) for group in VGG_GROUPS], network.widths((512,))
        built = vgg_like(groups=groups, hidden=full, classes=classes)
    else:
        one, two, three = network.widths((16, 32, 64))
        built = resnet(widths=(one, two, three), classes=classes)
    return built if channels is None else standardised(built, mean=channels.mean, std=channels.std)


def smaller(network: Network, *, sparsity: float, inputs: int, classes: int) -> Network:
    """The dense network of the same kind, all widths scaled alike, with the weights left at this sparsity.

    Its number of weights is the nearest there is, among equally near ones the smaller. Raises: InvalidInput
    for an ``mlp`` that no widths bring so low; a convolutional network of one channel per layer is the
    smallest there is, and is given for less.
    """
    if network.kind == "mlp":
        wanted = round((1 - sparsity) * count_weights((inputs, *network.hidden, classes)))
        return replace(network, hidden=dense_small(wanted, inputs, classes, hidden=network.hidden)[1:-1])
    count = functools.cache(lambda scale: _weights(replace(network, scale=scale), classes))
    low, high = network.scale * 2.0**-_HALVINGS, network.scale
    wanted = round((1 - sparsity) * count(high))
    if count(high) <= wanted:
        return network
    while high / low - 1 > 2.0**-_HALVINGS:
        middle = math.sqrt(low * high) if high / low > 2 else (low + high) / 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return replace(network, scale=min((low, high), key=lambda scale: abs(count(scale) - wanted)))


def check_smaller(experiment: Experiment, *, inputs: int, classes: int) -> None:
    """That there is a smaller network at every sparsity where a condition wants one.

    Raises: InvalidInput naming the condition and the sparsity.
    """
    if experiment.network.kind != "mlp":  # of a convolutional network there always is
        return
    for condition in (name for name in SCALED if name in experiment.conditions):
        for sparsity in experiment.sparsities:
            try:
                smaller(experiment.network, sparsity=sparsity, inputs=inputs, classes=classes)
            except InvalidInput as error:
                raise InvalidInput(
                    f"with {condition}, one of the sparsities is {sparsity}, which no widths come to "
                    f"({error}); leave it out"
                ) from error


def _weights(network: Network, classes: int) -> int:
    """Prunable weights of a convolutional network, counted without memory for them."""
    with torch.device("meta"):
        built = build(network, classes=classes)
    sizes = dict(built.named_parameters())
    return sum(sizes[name].numel() for name in prunable_names(built))


def module_builder(network: Network, *, classes: int, channels: Channels | None) -> Callable[[], nn.Module]:
    """:func:`build` as a function of nothing."""
    return functools.partial(build, network, classes=classes, channels=channels)


def widths_of(network: Network, *, inputs: int, classes: int) -> Sequence[int]:
    """Widths of a fully connected network; one output for a binary classifier."""
    return [inputs, *network.hidden, 1 if network.kind == "linear-binary" else classes]
