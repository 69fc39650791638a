"""Train every member of an ensemble at once: SGD with momentum, one batched product per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.cores import on_cores, shares
from empirical.ensembles import MLPEnsemble
from theory.types import InvalidInput


class TrainingDiverged(RuntimeError):
    """A member's weights became NaN or infinite; the message names the members."""


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent on the cross-entropy; the rate falls linearly to zero.

    Raises: InvalidInput for a value outside its range.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not self.learning_rate > 0:
            raise InvalidInput(f"learning_rate is {self.learning_rate}; it must be positive")
        if not 0 <= self.momentum < 1:
            raise InvalidInput(f"momentum is {self.momentum}; it must lie in [0, 1)")
        if not self.weight_decay >= 0:
            raise InvalidInput(f"weight_decay is {self.weight_decay}; it must not be negative")


def train(
    ensemble: MLPEnsemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    after_epoch: Callable[[], None] | None = None,
) -> MLPEnsemble:
    """The ensemble after ``recipe.epochs`` passes; pruned weights stay zero.

    Member k visits the examples in an order drawn from seeds[k] alone, so it equals the same network
    trained without the others, and members with equal seeds see equal batches. The last, incomplete
    batch of an epoch is dropped when there is a complete one.

    Raises: InvalidInput for shapes that disagree or labels out of range; TrainingDiverged naming the
    members whose weights are no longer finite.
    """
    _check(ensemble, x, y, seeds)
    device = ensemble.weights[0].device

    def share(members: range) -> tuple[list[Tensor], list[Tensor]]:
        heard = after_epoch if members.start == 0 else None
        chosen = [seeds[k] for k in members]
        return _descend(ensemble.select(members), x, y, recipe, seeds=chosen, after_epoch=heard)

    trained = on_cores(share, shares(ensemble.members, device=device), device=device)
    weights, biases = (
        [torch.cat(layer) for layer in zip(*half, strict=True)] for half in zip(*trained, strict=True)
    )
    finite = torch.stack([torch.isfinite(p).flatten(1).all(1) for p in weights + biases]).all(0)
    if not finite.all():
        lost = [f"{k} (seed {seeds[k]})" for k in (~finite).nonzero().flatten().tolist()]
        raise TrainingDiverged(
            f"members {', '.join(lost)} diverged; lower learning_rate {recipe.learning_rate}"
        )
    return MLPEnsemble(tuple(weights), tuple(biases), ensemble.masks)


def _descend(
    ensemble: MLPEnsemble,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    after_epoch: Callable[[], None] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases after training; they may have become infinite."""
    weights = [w.clone() for w in ensemble.weights]
    biases = [b[:, None].clone() for b in ensemble.biases]
    masks = [m.to(w.dtype) for m, w in zip(ensemble.masks, weights, strict=True)]
    parameters = weights + biases
    velocity = [torch.zeros_like(p) for p in parameters]
    generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    x = x.to(weights[0].dtype)
    batch = min(recipe.batch_size, len(x))
    steps = len(x) // batch
    for epoch in range(recipe.epochs):
        drawn = {seed: torch.randperm(len(x), generator=g) for seed, g in generators.items()}
        order = torch.stack([drawn[seed] for seed in seeds]).to(x.device)
        for step in range(steps):
            rows = order[:, step * batch : (step + 1) * batch]
            gradients = _gradients(weights, biases, masks, x[rows], y[rows])
            torch._foreach_add_(gradients[: len(weights)], weights, alpha=recipe.weight_decay)
            rate = recipe.learning_rate * (1 - (epoch * steps + step) / (recipe.epochs * steps))
            torch._foreach_mul_(velocity, recipe.momentum)
            torch._foreach_add_(velocity, gradients)
            torch._foreach_add_(parameters, velocity, alpha=-rate)
        if after_epoch:
            after_epoch()
    return weights, [b[:, 0] for b in biases]


def _gradients(
    weights: list[Tensor], biases: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor
) -> list[Tensor]:
    """Gradients of the mean cross-entropy of (K, b, d) batches: one per weight, then one per bias.

    Written out because autograd's graph costs more than the products at these sizes. Weights are kept
    masked, so the forward pass needs no mask and the gradient needs one.
    """
    hidden = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden.append(torch.baddbmm(bias, hidden[-1], weight.mT).relu_())
    scores = torch.baddbmm(biases[-1], hidden[-1], weights[-1].mT)
    if scores.shape[2] == 1:
        error = scores.sigmoid() - y[..., None]
    else:
        error = scores.softmax(2)
        error.scatter_add_(2, y[..., None], error.new_full((1, 1, 1), -1.0).expand(*y.shape, 1))
    error /= y.shape[1]
    by_weight, by_bias = [], []
    for i in reversed(range(len(weights))):
        by_weight.append(torch.bmm(error.mT, hidden[i]).mul_(masks[i]))
        by_bias.append(error.sum(1, keepdim=True))
        if i:
            error = torch.bmm(error, weights[i]).mul_(hidden[i] > 0)
    return by_weight[::-1] + by_bias[::-1]


def _check(ensemble: MLPEnsemble, x: Tensor, y: Tensor, seeds: Sequence[int]) -> None:
    if x.shape[1] != ensemble.inputs:
        raise InvalidInput(f"x has {x.shape[1]} features; the networks take {ensemble.inputs}")
    if len(x) == 0 or len(y) != len(x):
        raise InvalidInput(f"y has {len(y)} labels for {len(x)} examples; give one label per example")
    if int(y.min()) < 0 or int(y.max()) >= ensemble.classes:
        raise InvalidInput(
            f"y spans [{int(y.min())}, {int(y.max())}]; labels must lie in [0, {ensemble.classes})"
        )
    if len(seeds) != ensemble.members:
        raise InvalidInput(f"seeds has {len(seeds)} entries; the ensemble has {ensemble.members} members")
