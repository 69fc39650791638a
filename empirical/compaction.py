"""A pruned network without what pruning left useless: the same function, fewer products."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from empirical.ensembles import MLPEnsemble
from theory.types import InvalidInput

# A network is used without its dead parts where that leaves at most this share of the products.
SMALL = 0.5


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
        list(parts) for parts in zip(*((w[0], b[0], m[0]) for w, b, m in layers), strict=True)
    )
    for i in range(len(weights) - 1):  # constants first: folding them can leave later units without weights
        varying = weights[i].any(1)
        biases[i + 1] = biases[i + 1] + weights[i + 1] @ (biases[i].relu() * ~varying)
        weights[i + 1], masks[i + 1] = weights[i + 1] * varying, masks[i + 1] & varying
        _keep_units(weights, biases, masks, i, _some(varying))
    for i in reversed(range(len(weights) - 1)):  # from behind: a dropped unit needs no inputs
        _keep_units(weights, biases, masks, i, _some(weights[i + 1].any(0)))
    inputs = _some(weights[0].any(0))
    weights[0], masks[0] = weights[0][:, inputs], masks[0][:, inputs]
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
