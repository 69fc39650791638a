"""The networks of the literature on pruning, as plain modules whose widths can be scaled down.

Fully connected ones, LeNet-300-100 among them, are :func:`empirical.ensembles.initialise` with
``(784, 300, 100, 10)``. Every builder here draws its weights from torch's global generator, as
:func:`empirical.ensembles.initialise_modules` expects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from theory.types import InvalidInput

LENET_300_100 = (784, 300, 100, 10)


def lenet5(
    *,
    channels: tuple[int, int] = (20, 50),
    hidden: int = 500,
    classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
) -> nn.Sequential:
    """LeNet-5 as in Caffe: 430,500 weights and 580 biases; no ReLU after its two convolutions.

    Weights are uniform of variance 1 / fan-in (Caffe's "xavier"), biases 0.
    Raises: InvalidInput for a width < 1, or images too small for two 5 x 5 convolutions.
    """
    _check_widths("channels", channels)
    _check_widths("hidden and classes", (hidden, classes))
    height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
    if min(height, width) < 1:
        raise InvalidInput(f"shape is {shape}; LeNet-5 needs images of at least 16 x 16")
    network = nn.Sequential(
        nn.Conv2d(shape[0], channels[0], 5),
        nn.MaxPool2d(2),
        nn.Conv2d(channels[0], channels[1], 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels[1] * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
    for layer, fan_in in _layers(network):
        nn.init.uniform_(layer.weight, -math.sqrt(3 / fan_in), math.sqrt(3 / fan_in))
    return network


VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg_like(
    *,
    groups: Sequence[Sequence[int]] = VGG_GROUPS,
    hidden: int = 512,
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
) -> nn.Sequential:
    """The VGG-like network of Neklyudov et al. (2017) for CIFAR: 14,977,728 weights, without dropout.

    Groups of 3 x 3 convolutions, batch-norm and ReLU, each followed by 2 x 2 max pooling; then a hidden
    layer with batch-norm and ReLU, and the classes. Layers before batch-norm have no bias. He-normal weights.
    Raises: InvalidInput for a width < 1, or images that pooling makes vanish.
    """
    for group in groups:
        _check_widths("groups", group)
    _check_widths("hidden and classes", (hidden, classes))
    height, width = (side >> len(groups) for side in shape[1:])
    if min(height, width) < 1:
        raise InvalidInput(f"shape is {shape}; {len(groups)} poolings need a side of {1 << len(groups)}")
    layers: list[nn.Module] = []
    last = shape[0]
    for group in groups:
        for channels in group:
            layers += [_conv3(last, channels), nn.BatchNorm2d(channels), nn.ReLU()]
            last = channels
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(last * height * width, hidden, bias=False)]
    layers += [nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return _he_normal(nn.Sequential(*layers))


def resnet(
    *,
    depth: int = 32,
    widths: tuple[int, int, int] = (16, 32, 64),
    classes: int = 10,
    channels: int = 3,
) -> nn.Sequential:
    """The CIFAR residual network of He et al. (2016), option-A shortcuts; ResNet-32 has 464,154 parameters.

    Where a block halves the image, the shortcut takes every second pixel and pads the channels with zeros,
    so it has no weights. He-normal weights.
    Raises: InvalidInput unless depth = 6 n + 2 with n >= 1 and the widths do not fall.
    """
    _check_widths("widths", (*widths, classes, channels))
    if depth < 8 or (depth - 2) % 6:
        raise InvalidInput(f"depth is {depth}; it must be 6 n + 2: 8, 14, 20, 26, 32 ...")
    if list(widths) != sorted(widths):
        raise InvalidInput(f"widths is {widths}; a shortcut without weights cannot drop channels")
    layers: list[nn.Module] = [_conv3(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    last = widths[0]
    for stage, width in enumerate(widths):
        for block in range((depth - 2) // 6):
            layers.append(_Residual(last, width, stride=2 if stage and not block else 1))
            last = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return _he_normal(nn.Sequential(*layers))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with batch-norm beside an option-A shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.branch = nn.Sequential(
            _conv3(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _conv3(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        before = self.added // 2
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        return torch.relu(self.branch(x) + shortcut)


class Standardise(nn.Module):
    """(x - mean) / std, channel by channel; frozen, so a network with it takes the pixels as they are stored.

    Distances and gradients of the network are then those of the pixels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise InvalidInput(f"std is {list(std)}; give one positive number for each of {list(mean)}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, (n, channels, height, width)."""
        return (x - self.mean) * self.scale


def standardised(network: nn.Sequential, *, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """The network behind a frozen layer that standardises each channel. Raises: InvalidInput for std <= 0."""
    return nn.Sequential(Standardise(mean, std), *network)


def dense_small(
    total_weights: int, inputs: int, outputs: int, *, hidden: Sequence[int] = (300, 100)
) -> tuple[int, ...]:
    """Widths of the smaller fully connected network whose number of weights is nearest to ``total_weights``.

    The hidden widths are ``hidden`` times one common factor, rounded, at least 1 each; among equally near
    ones the smaller network. :func:`count_weights` says how many weights it has.
    Raises: InvalidInput for a width < 1, or a number that no network of at most these widths comes to.
    """
    _check_widths("inputs, hidden and outputs", (inputs, *hidden, outputs))
    scaled = {tuple(max(1, math.floor(s * h + Fraction(1, 2))) for h in hidden) for s in _steps(hidden)}
    counts = {(count_weights((inputs, *h, outputs)), h) for h in scaled}
    low, high = min(counts)[0], max(counts)[0]
    if not low <= total_weights <= high:
        raise InvalidInput(
            f"total_weights is {total_weights}; {inputs}-{'-'.join(map(str, hidden))}-{outputs} scaled down "
            f"has {low} to {high} weights"
        )
    _, nearest = min(counts, key=lambda found: (abs(found[0] - total_weights), found[0]))
    return (inputs, *nearest, outputs)


def count_weights(widths: Sequence[int]) -> int:
    """Weights of a fully connected network, biases excluded."""
    return sum(a * b for a, b in pairwise(widths))


def _steps(hidden: Sequence[int]) -> Iterator[Fraction]:
    """Factors of every different rounding of ``hidden`` times a factor in (0, 1]: where a width steps up."""
    yield Fraction(0)
    for h in hidden:
        yield from (Fraction(2 * j - 1, 2 * h) for j in range(1, h + 1))


def _conv3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _he_normal(network: nn.Sequential) -> nn.Sequential:
    for layer, fan_in in _layers(network):
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
    return network


def _layers(network: nn.Module) -> Iterator[tuple[nn.Linear | nn.Conv2d, int]]:
    """Every layer with weights and its fan-in, its bias set to 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            yield layer, layer.weight[0].numel()


def _check_widths(name: str, widths: Sequence[int]) -> None:
    if not widths or min(widths) < 1:
        raise InvalidInput(f"{name} is {tuple(widths)}; give at least one width, each >= 1")
