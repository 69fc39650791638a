"""Carlini and Wagner's attack: Adam on squared distance plus a hinge of the margin, its weight searched."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import (
    ActiveSet,
    Batch,
    Closest,
    attack_correct,
    check_attack,
    check_count,
    margins,
)
from empirical.attacks.geometry import clip, feasible, norm
from empirical.attacks.search import cleared
from empirical.ensembles import Ensemble
from theory.types import InvalidInput

# Adam's constants, as published.
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
# While every weight has failed, the next is this many times the last.
_GROWTH = 10.0
# The search ends when the smallest weight that succeeded and the largest that failed are this close: finer
# weights move the closest point by less than the steps of Adam do.
_CLOSE = 0.2


def carlini_wagner(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    steps: int = 100,
    searches: int = 9,
    rate: float = 0.5,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """C&W (Carlini and Wagner 2017) in l_2: min ||d||^2 + c max(margin, 0), with c searched by bisection.

    Works on d itself, projected on the box after each step, so that pixels at its ends can move (the paper's
    tanh variable is infinite there). The margin is divided by the norm of its gradient at x, which makes it a
    distance: c starts at twice that distance, the right weight for a linear model. ``rate`` is Adam's, as a
    share of that distance over the root of the number of inputs that the gradient at x moves (0.5 is about
    0.01 on MNIST), and falls linearly to 0. An example is done when c is known to a fifth.
    Raises: InvalidInput for steps or searches < 1, a rate that is not positive, or bad shapes, values, labels
    or box.
    """
    check_attack(ensemble, x, y, box=box)
    check_count("steps", steps)
    check_count("searches", searches)
    if not 0 < rate < torch.inf:
        raise InvalidInput(f"rate is {rate}; it must be positive and finite")

    return attack_correct(
        ensemble,
        x,
        y,
        lambda batch: _search(batch, steps=steps, searches=searches, rate=rate, box=box),
        box=box,
    )


def _search(
    batch: Batch, *, steps: int, searches: int, rate: float, box: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """Rounds of Adam, each with a weight between the largest that failed and the smallest that succeeded."""
    logits, gradient = batch.nets.logits_and_gradient(batch.start, batch.loss)
    slope = norm(feasible(gradient, batch.start, box), p=2)
    distance = torch.where(slope > 0, batch.gap(logits) / slope, 0.0)
    unit = torch.where(distance > 0, distance / (gradient != 0).sum(2).clamp(min=1).sqrt(), 1.0)
    best, weight = Closest.none(batch.start), 2 * distance
    low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    unfinished = distance > 0
    for _ in range(searches):
        if not unfinished.any():
            break
        active = ActiveSet.of(unfinished)
        take = active.take
        pull = torch.where(slope > 0, weight / unit / slope, 0.0)
        found = _descend(batch.part(active), take(pull), take(unit), steps=steps, rate=rate, box=box)
        success, everywhere = found.found, torch.ones_like(found.found)
        closer = success & (found.distance < take(best.distance))
        active.put(best.points, found.points, closer)
        active.put(best.distance, found.distance, closer)
        active.put(low, torch.where(success, take(low), take(weight)), everywhere)
        active.put(high, torch.where(success, take(weight), take(high)), everywhere)
        weight = torch.where(high.isfinite(), (low + high) / 2, _GROWTH * weight)
        unfinished &= high.isinf() | (high - low > _CLOSE * high)
    return cleared(batch, best, box=box)


def _descend(
    batch: Batch, pull: Tensor, unit: Tensor, *, steps: int, rate: float, box: tuple[float, float] | None
) -> Closest:
    """One round of Adam from d = 0, ``pull`` the margin's weight: the closest success, if any.

    Gradients are in units of ``unit``: their squares neither overflow nor vanish.
    """
    best, points, loss = Closest.none(batch.start), batch.start, batch.loss
    delta, momentum, variance = (torch.zeros_like(points) for _ in range(3))
    length, unit = torch.zeros_like(pull), unit[..., None]
    for i in range(steps):
        logits, gradient = batch.nets.logits_and_gradient(points, loss)
        success = margins(logits, batch.y) < 0
        best.offer(points, length, success)
        gradient.mul_(torch.where(success, 0.0, -pull)[..., None]).addcdiv_(delta, unit, value=2)
        momentum.lerp_(gradient, 1 - _BETA1)
        variance.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        root = variance.sqrt().mul_((1 - _BETA2 ** (i + 1)) ** -0.5).add_(_EPSILON)
        step = rate * (1 - i / steps) / (1 - _BETA1 ** (i + 1))
        delta = delta.addcdiv_(momentum * unit, root, value=-step)
        points = clip(batch.start + delta, box)
        delta = points - batch.start
        length = norm(delta, p=2)
    best.offer(points, length, batch.success(points))
    return best
