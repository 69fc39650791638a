"""The steps of a training: one batch per member, gradients, and the update of every value in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import softshrink

from empirical.ensembles import Ensemble
from empirical.training.adversarial import attacked
from empirical.training.gradients import Packed, TrainedMLP, TrainedModule, trained
from empirical.training.recipe import Recipe
from empirical.training.surgery import operate, thresholds

# Of Adam's denominator, as in the paper and in torch.optim.
ADAM_EPS = 1e-8


@dataclass
class Descent:
    """A training in progress; everything changes in place, and it can be stored between two epochs.

    Values come in pairs: of the prunable weights, and of the other parameters. ``first`` holds SGD's momentum
    or Adam's first moments, ``second`` Adam's second ones. ``masks`` are 0 or 1, None while no weight is
    pruned. ``limits`` are the thresholds of surgery. ``members`` are the networks' numbers; one whose values
    are no longer finite is dropped after the epoch. Members with equal seeds share a generator.
    """

    networks: TrainedMLP | TrainedModule
    masks: Packed | None
    first: tuple[Packed, Packed]
    second: tuple[Packed, Packed] | None
    limits: list[Tensor]
    members: list[int]
    seeds: list[int]
    generators: dict[int, Generator]
    epoch: int = 0

    def finite(self) -> Bool[Tensor, " K"]:
        """Which members hold neither NaN nor infinity."""
        networks = self.networks
        values = (*networks.weights.parts, *networks.others.parts, *networks.buffers)
        return torch.stack([torch.isfinite(v).reshape(len(v), -1).all(1) for v in values]).all(0)

    def keep(self, which: Bool[Tensor, " K"]) -> None:
        """Drop the other members."""
        if bool(which.all()):
            return
        self.networks = self.networks.select(which)
        self.masks = self.masks and self.masks.select(which)
        self.first = (self.first[0].select(which), self.first[1].select(which))
        self.second = self.second and (self.second[0].select(which), self.second[1].select(which))
        self.limits = [limit[which] for limit in self.limits]
        kept = which.nonzero().flatten().tolist()
        self.members, self.seeds = [self.members[k] for k in kept], [self.seeds[k] for k in kept]

    def ensemble(self) -> Ensemble:
        """The networks as they are now, pruned weights 0."""
        weights = self.networks.weights
        if self.masks is None:
            return self.networks.ensemble([torch.ones_like(w, dtype=torch.bool) for w in weights.parts])
        if self.limits:
            weights.buffer.mul_(self.masks.buffer)
        return self.networks.ensemble(self.masks.parts)


def begin(ensemble: Ensemble, recipe: Recipe, *, members: Sequence[int], seeds: Sequence[int]) -> Descent:
    """Before the first step of these members: values copied, momentum 0, every generator at its seed.

    ``seeds`` has one for every member of the ensemble.
    """
    ensemble = ensemble.select(members)
    own = [seeds[k] for k in members]
    networks = trained(ensemble, compiled=recipe.compiled)
    dense = recipe.surgery is None and all(bool(m.all()) for m in ensemble.masks)
    adam = recipe.optimiser == "adam"
    return Descent(
        networks,
        None if dense else Packed.of(ensemble.masks, like=networks.weights.buffer),
        (networks.weights.zeros(), networks.others.zeros()),
        (networks.weights.zeros(), networks.others.zeros()) if adam else None,
        thresholds(networks.weights.parts, recipe.surgery) if recipe.surgery else [],
        list(members),
        own,
        {seed: Generator().manual_seed(seed) for seed in own},
    )


def descend(
    state: Descent,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    recipe: Recipe,
    *,
    until: int,
    after_epoch: Callable[[], None] | None = None,
) -> None:
    """Train up to epoch ``until`` of the recipe, or until every member is lost."""
    batch = min(recipe.batch_size, len(x))
    per_epoch = len(x) // batch
    x = x.to(state.networks.weights.buffer.dtype)
    while state.epoch < until and state.members:
        order = drawn(state, lambda g: torch.randperm(len(x), generator=g)).to(x.device)
        # Numbers of a whole epoch, so that a GPU does not wait for them at every step.
        changes = _changes(state, recipe, per_epoch * batch, device=x.device)
        gradients = state.networks.weights.zeros(), state.networks.others.zeros()
        for i in range(per_epoch):
            part = slice(i * batch, (i + 1) * batch)
            rows = order[:, part]
            step = state.epoch * per_epoch + i
            factor = recipe.schedule.factor(step, recipe.epochs * per_epoch, epoch=state.epoch)
            rate = recipe.learning_rate * factor
            images = x[rows]
            if changes is not None and recipe.augmentation is not None:
                shape = state.networks.start.shape  # type: ignore[union-attr]
                images = recipe.augmentation.apply(images, changes[:, part], shape=shape)
            _step(state, images, y[rows], recipe, step=step, rate=rate, gradients=gradients)
        state.epoch += 1
        state.keep(state.finite())
        if after_epoch:
            after_epoch()


def _changes(state: Descent, recipe: Recipe, examples: int, *, device: torch.device) -> Tensor | None:
    """What augmentation does to every example of an epoch, in the order in which they come."""
    if recipe.augmentation is None or not isinstance(state.networks, TrainedModule):
        return None
    return drawn(state, partial(recipe.augmentation.draw, examples)).to(device)


def _step(
    state: Descent,
    x: Float[Tensor, "K b d"],
    y: Int[Tensor, "K b"],
    recipe: Recipe,
    *,
    step: int,
    rate: float,
    gradients: tuple[Packed, Packed],
) -> None:
    """One update by one batch per member; ``gradients`` is memory to write them to."""
    networks, masks = state.networks, state.masks
    used = networks.weights.parts
    if masks and recipe.surgery:
        used = torch._foreach_mul(used, masks.parts)
    x = _attacked(state, used, x, y, recipe)
    networks.gradients(used, x, y, recipe, out=gradients)
    if masks and not recipe.surgery:
        gradients[0].buffer.mul_(masks.buffer)
    _update(state, gradients, recipe, step=step, rate=rate)
    if recipe.l1:
        # The heavy ball multiplies the gradient's steps by 1 / (1 - momentum) in the long run; the penalty's
        # must keep their proportion to it.
        limit = rate * recipe.l1 / (1 - recipe.momentum)
        networks.weights.buffer.copy_(softshrink(networks.weights.buffer, limit))
    if masks and recipe.surgery:
        coins = drawn(state, lambda g: torch.rand((), generator=g))
        updated = (coins < recipe.surgery.probability(step)).to(masks.buffer.device)
        operate(networks.weights.parts, masks.parts, state.limits, updated)


def _attacked(
    state: Descent, used: Sequence[Tensor], x: Float[Tensor, "K b d"], y: Int[Tensor, "K b"], recipe: Recipe
) -> Float[Tensor, "K b d"]:
    """The batches as the recipe's adversary leaves them."""
    if recipe.adversary is None:
        return x
    noise = None
    if recipe.adversary.random_start:
        noise = drawn(state, lambda g: torch.rand(x.shape[1:], generator=g, dtype=x.dtype)).to(x.device)
    slope = partial(state.networks.input_gradient, used, y=y, recipe=recipe)
    return attacked(slope, x, recipe.adversary, noise=noise)


def _update(
    state: Descent, gradients: tuple[Packed, Packed], recipe: Recipe, *, step: int, rate: float
) -> None:
    """SGD, v <- momentum v + g + c w and w <- w - rate v, Nesterov's variant, or Adam; in one pass."""
    networks = state.networks
    decays = (recipe.weight_decay, recipe.other_decay)
    for i, (values, decay) in enumerate(zip((networks.weights, networks.others), decays, strict=True)):
        if not values.parts:
            continue
        parameters, slopes, first = [values.buffer], [gradients[i].buffer], [state.first[i].buffer]
        if state.second is None:
            torch._fused_sgd_(
                parameters, slopes, first if recipe.momentum else [], weight_decay=decay,
                momentum=recipe.momentum, lr=rate,
                dampening=0.0, nesterov=recipe.nesterov, maximize=False, is_first_step=False,
            )  # fmt: skip
        else:
            count = torch.tensor(step + 1.0, device=values.buffer.device)
            torch._fused_adam_(
                parameters, slopes, first, [state.second[i].buffer], [], [count], lr=rate,
                beta1=recipe.momentum, beta2=recipe.second_momentum, weight_decay=decay, eps=ADAM_EPS,
                amsgrad=False, maximize=False,
            )  # fmt: skip


def drawn(state: Descent, draw: Callable[[Generator], Tensor]) -> Tensor:
    """One draw from every seed's generator, stacked in the order of the members."""
    found = {seed: draw(generator) for seed, generator in state.generators.items()}
    return torch.stack([found[seed] for seed in state.seeds])
