"""A pruned network without what pruning left useless: the same function, fewer products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from empirical.ensembles import MLPEnsemble, ModuleEnsemble, from_modules, to_module
from theory.types import InvalidInput

# A network is used without its dead parts where that leaves at most this share of the products.
SMALL = 0.5
# The same of a stack of convolutions, whose members a CPU evaluates one by one in any case.
SMALL_STACK = 0.9


@dataclass(frozen=True)
class Compact:
    """One network on the ``inputs`` it depends on, by their places among the original features."""

    network: MLPEnsemble
    inputs: Int[Tensor, " k"]

    def take(self, x: Float[Tensor, "*K n d"]) -> Float[Tensor, "*K n k"]:
        """The features that the network depends on."""
        return x[..., self.inputs]

    def put(self, x: Float[Tensor, "n d"], x_adv: Float[Tensor, "K n k"]) -> Float[Tensor, "K n d"]:
        """The examples with these features as in ``x_adv``; all others are as they were."""
        full = x.expand(len(x_adv), *x.shape).clone()
        full[..., self.inputs] = x_adv
        return full


def compact(network: MLPEnsemble) -> Compact:
    """The network without dead inputs and dead hidden units (*identity*, up to the rounding of biases).

    A unit without incoming weights is constant and goes into the next biases; a unit without outgoing weights
    goes, and so does an input that no unit is left to see. What remains is a fixed point. A layer
    that would be empty keeps one entry, of weight 0.
    Raises: InvalidInput unless ``network`` has one member.
    """
    if network.members != 1:
        raise InvalidInput(f"network has {network.members} members; compact one at a time: select([k])")
    layers = zip(network.weights, network.biases, network.masks, strict=True)
    weights, biases, masks = (
        list(parts)
        for parts in zip(*((w[0, ..., None], b[0], m[0, ..., None]) for w, b, m in layers), strict=True)
    )
    hidden = len(weights) - 1
    _strip(weights, biases, masks, relus=[True] * hidden, padded=[False] * hidden)
    inputs = _some(weights[0].any(2).any(0))
    weights[0], masks[0] = weights[0][:, inputs], masks[0][:, inputs]
    weights, masks = ([part[..., 0] for part in parts] for parts in (weights, masks))
    small = MLPEnsemble(*(tuple(part[None] for part in parts) for parts in (weights, biases, masks)))
    return Compact(small, inputs)


def much_smaller(network: MLPEnsemble) -> Compact | None:
    """The compact network if it has at most the share SMALL of the products, else None.

    Raises: InvalidInput unless ``network`` has one member.
    """
    small = compact(network)
    return small if products(small.network) <= SMALL * products(network) else None


def products(network: MLPEnsemble) -> int:
    """Multiplications of one forward pass of one example, zero weights included."""
    return sum(weight[0].numel() for weight in network.weights)


def smaller_stack(network: ModuleEnsemble) -> ModuleEnsemble | None:
    """The network without dead channels and hidden units, at most the share SMALL_STACK of the products.

    It takes the same images. None where more is left, and for anything but a ``Sequential`` of convolutions,
    max-poolings and linear layers, ReLUs and a ``Flatten``. Raises: InvalidInput unless ``network`` has one
    member.
    """
    if network.members != 1:
        raise InvalidInput(f"network has {network.members} members; compact one at a time: select([k])")
    if type(network.module) is not nn.Sequential:
        return None
    module = to_module(network, 0)
    if not isinstance(module, nn.Sequential) or not _is_stack(module, network.shape):
        return None
    before = _stack_products(module, network.shape)
    layers = list(module)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    weighted = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for layer in weighted:
        weight = layer.weight.detach()
        sources = len(weights[-1]) if weights else weight.shape[1]
        weights.append(weight.reshape(len(weight), sources, -1))
        biases.append(weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach())
    _strip(
        weights,
        biases,
        [weight != 0 for weight in weights],
        relus=[any(isinstance(m, nn.ReLU) for m in layers[i:j]) for i, j in pairwise(places)],
        padded=[isinstance(m, nn.Conv2d) and m.padding != (0, 0) for m in weighted[1:]],
    )
    for layer, weight, bias in zip(weighted, weights, biases, strict=True):
        kernel = layer.weight.shape[2:]
        shaped = weight.unflatten(2, kernel) if len(kernel) else weight.flatten(1)
        layer.weight, layer.bias = nn.Parameter(shaped), nn.Parameter(bias)
    if _stack_products(module, network.shape) > SMALL_STACK * before:
        return None
    return from_modules([module], shape=network.shape)


def _is_stack(module: nn.Sequential, shape: tuple[int, ...]) -> bool:
    """Whether channels and units of its layers can be told from the layers alone."""
    weighted = [id(layer) for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    if len(set(weighted)) < len(weighted):  # one is used twice
        return False
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules()):
        return False
    images, flat = len(shape) == 3, len(shape) == 1
    for layer in module:
        kind = type(layer)
        if isinstance(layer, nn.Flatten):
            known, images = kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1), False
            flat = True
        elif isinstance(layer, nn.Conv2d):
            zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            known = kind is nn.Conv2d and images and layer.groups == 1 and zeros
        else:
            known = kind is nn.ReLU or (images and kind is nn.MaxPool2d) or (flat and kind is nn.Linear)
        if not known:
            return False
    return True


@torch.no_grad()
def _stack_products(module: nn.Sequential, shape: tuple[int, ...]) -> int:
    """Multiplications of one forward pass of one example, zero weights included."""
    first, total = next(module.parameters()), 0
    x = first.new_zeros(1, *shape)
    for layer in module:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            total += layer.weight.numel() * x[0, 0].numel()
    return total


def _strip(
    weights: list[Tensor],
    biases: list[Tensor],
    masks: list[Tensor],
    *,
    relus: Sequence[bool],
    padded: Sequence[bool],
) -> None:
    """Take dead units out of layers (outputs, inputs, places), in place.

    Between two layers ``relus`` says whether a ReLU lies, ``padded`` whether the second sees zeros around its
    inputs: then a constant other than 0 is none.
    """
    for i in range(len(weights) - 1):  # constants first: folding them can leave later units without weights
        constant = biases[i].relu() if relus[i] else biases[i]
        varying = weights[i].flatten(1).any(1)
        if padded[i]:
            varying = varying | (constant != 0)
        biases[i + 1] = biases[i + 1] + weights[i + 1].sum(2) @ (constant * ~varying)
        weights[i + 1] = weights[i + 1] * varying[:, None]
        masks[i + 1] = masks[i + 1] & varying[:, None]
        _keep_units(weights, biases, masks, i, _some(varying))
    for i in reversed(range(len(weights) - 1)):  # from behind: a dropped unit needs no inputs
        _keep_units(weights, biases, masks, i, _some(weights[i + 1].any(2).any(0)))


def _some(alive: Tensor) -> Tensor:
    """The places that are True; the first one if none is."""
    places = alive.nonzero()[:, 0]
    return places if len(places) else places.new_zeros(1)


def _keep_units(
    weights: list[Tensor], biases: list[Tensor], masks: list[Tensor], layer: int, units: Tensor
) -> None:
    """Keep these units of a hidden layer."""
    weights[layer], masks[layer], biases[layer] = (
        weights[layer][units],
        masks[layer][units],
        biases[layer][units],
    )
    weights[layer + 1], masks[layer + 1] = weights[layer + 1][:, units], masks[layer + 1][:, units]
