"""Sparse activations: how sparse the inputs of the last layer are, and networks that make them sparser."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble, from_modules, to_module
from empirical.ensembles.modules import PRUNABLE, evaluate
from theory.types import InvalidInput

# Examples that go through every network at once where its activations are only counted.
_EXAMPLES = 500


class KLargest(nn.Module):
    """All but the k units of largest absolute value of every example become 0; ties go to the lower index.

    Raises: InvalidInput unless k >= 1; on use, if there are fewer than k units.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise InvalidInput(f"k is {k}; at least one unit must stay")
        self.k = k

    def extra_repr(self) -> str:
        """The k."""
        return f"k={self.k}"

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, (n, ...)."""
        flat = x.flatten(1)
        if self.k > flat.shape[1]:
            raise InvalidInput(f"k is {self.k}; the layer has {flat.shape[1]} units")
        order = flat.detach().abs().argsort(dim=1, descending=True, stable=True)
        kept = torch.zeros_like(flat).scatter(1, order[:, : self.k], 1.0)
        return (flat * kept).view_as(x)


class Above(nn.Module):
    """Units of absolute value at most ``threshold`` become 0.

    Raises: InvalidInput unless the threshold is finite and not negative.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        if not 0 <= threshold < torch.inf:
            raise InvalidInput(f"threshold is {threshold}; it must be finite and not negative")
        self.threshold = threshold

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.threshold}"

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * (x.abs() > self.threshold)


def with_activation(ensemble: Ensemble, activation: nn.Module) -> ModuleEnsemble:
    """The same networks with ``activation``, which must have no parameters, before their last layer.

    It is part of the networks from here on: in training, in attacks and in their gradients.
    Raises: InvalidInput if it has parameters or buffers.
    """
    if any(True for values in (activation.parameters(), activation.buffers()) for _ in values):
        raise InvalidInput("activation has parameters or buffers; give one without")
    found = as_modules(ensemble)
    module = copy.deepcopy(found.module)
    last_layer(module).register_forward_pre_hook(_Applied(activation))
    return replace(found, module=module)


class _Applied:
    """A forward pre-hook that can be copied with its module."""

    def __init__(self, activation: nn.Module) -> None:
        self.activation = activation

    def __repr__(self) -> str:
        return f"with {self.activation}"

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.activation(inputs[0])


def share_of_zero_activations(ensemble: Ensemble, x: Float[Tensor, "n d"]) -> Float[Tensor, " K"]:
    """Fraction of the inputs of the last layer that are exactly 0, over all units and examples."""
    found = as_modules(ensemble)
    recorded = Recorded(found.module)
    state = {f"module.{name}": tensor for name, tensor in found.state.items()}
    zeros, units = torch.zeros(found.members, dtype=torch.float64, device=x.device), 0
    with torch.no_grad():
        for some in x.split(_EXAMPLES):
            images = some.expand(found.members, *some.shape).unflatten(2, found.shape)
            inputs = evaluate(recorded, state, images)[..., found.outputs :]
            zeros += (inputs == 0).sum((1, 2))
            units += inputs[0].numel()
    return zeros / units


class Recorded(nn.Module):
    """A module whose output is its scores, then the inputs of its last linear or convolutional layer.

    Last is the one that the module names last.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(n, classes + inputs of the last layer)."""
        seen: list[Tensor] = []

        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(1))

        handle = last_layer(self.module).register_forward_pre_hook(record)
        try:
            scores = self.module(x)
        finally:
            handle.remove()
        return torch.cat([scores, seen[-1]], dim=1)


def last_layer(module: nn.Module) -> nn.Module:
    """The linear or convolutional layer that the module names last."""
    return [layer for layer in module.modules() if isinstance(layer, PRUNABLE)][-1]


def as_modules(ensemble: Ensemble) -> ModuleEnsemble:
    """The same networks as modules. Raises: InvalidInput for another kind of ensemble."""
    if isinstance(ensemble, ModuleEnsemble):
        return ensemble
    if not isinstance(ensemble, MLPEnsemble):
        raise InvalidInput(f"ensemble is a {type(ensemble).__name__}; give MLPs or modules")
    like = ensemble.weights[0]
    networks = [to_module(ensemble, k) for k in range(ensemble.members)]
    found = from_modules(networks, shape=(ensemble.inputs,)).to(dtype=like.dtype, device=like.device)
    return replace(found, masks=ensemble.masks)
