"""Fast minimum-norm attack: gradient steps on the margin, projected on a ball whose radius adapts."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import Batch, Closest, attack_correct, check_attack, check_count, margins
from empirical.attacks.geometry import along, clip, feasible, norm, project
from empirical.attacks.search import pulled_back
from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_p

# What the step and gamma end at, relative to their first values.
_LAST_STEP, _LAST_GAMMA = 0.01, 0.02


def fmn(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    steps: int = 50,
    gamma: float = 0.05,
    target: Int[Tensor, " n"] | None = None,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """FMN (Pintor et al. 2021): the closest point in l_p, p in {2, inf}, found in ``steps`` gradient steps.

    Until the first success the radius is the current point's own and the linearised distance from there, and
    a little more so that it crosses the boundary. Then it shrinks below the closest success, or grows after
    a failure, by a gamma that decays with the steps. The first step is the l_2 length of the linearised way
    to the boundary (1 in the paper, where the data's scale is known). With ``target`` the way leads towards
    those classes, though any other class counts. The point found is pulled back to the boundary on its ray.
    Raises: InvalidInput for another p, steps < 1, gamma outside (0, 1), or bad shapes, values, labels,
    targets or box.
    """
    check_attack(ensemble, x, y, box=box)
    check_p(p)
    check_count("steps", steps)
    check_gamma(gamma)
    if target is not None:
        check_attack(ensemble, x, target, labels="target")
        if (target == y).any():
            raise InvalidInput(
                f"target[{int((target == y).nonzero()[0])}] is the label; aim at another class"
            )

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        aimed = batch if target is None else replace(batch, aim=target[batch.rows])
        begin = Closest.none(batch.start)
        return pulled_back(aimed, descend(aimed, begin, p=p, steps=steps, gamma=gamma, box=box), box=box)

    return attack_correct(ensemble, x, y, attack, box=box)


def check_gamma(gamma: float) -> None:
    """Raises: InvalidInput unless it lies in (0, 1)."""
    if not 0 < gamma < 1:
        raise InvalidInput(f"gamma is {gamma}; the relative change of the radius lies in (0, 1)")


def descend(
    batch: Batch, begin: Closest, *, p: float, steps: int, gamma: float, box: tuple[float, float] | None
) -> Closest:
    """The closest points met on the way from ``begin``, or from x where that has found nothing.

    The first step is as long as the way to x, or as the linearised one to the boundary. ``begin`` is changed.
    """
    best, points, loss = begin, begin.points.clone(), batch.loss
    delta = points - batch.start
    length = radius = begin.distance.masked_fill(~begin.found, 0.0)
    first = torch.zeros_like(length)
    for i in range(steps):
        logits, whole = batch.nets.logits_and_gradient(points, loss)
        gradient = feasible(whole, points, box)
        success = margins(logits, batch.y) < 0
        best.offer(points, length, success)
        decay = (1 + math.cos(math.pi * i / steps)) / 2
        change = gamma * (_LAST_GAMMA + (1 - _LAST_GAMMA) * decay)
        size = norm(gradient, p=2)
        dual = size if p == 2 else norm(gradient, p=1)
        linearised = torch.where(dual > 0, batch.gap(logits).abs() / dual, 0.0)
        adapted = torch.where(success, radius.minimum(best.distance) * (1 - change), radius * (1 + change))
        radius = torch.where(best.found, adapted, (length + linearised) * (1 + change))
        if i == 0:
            moving = (whole != 0).sum(2, dtype=whole.dtype)
            first = torch.where(best.found, length, linearised)
            first = first if p == 2 else first * moving.sqrt()
        step = first * (_LAST_STEP + (1 - _LAST_STEP) * decay)
        delta.addcmul_(gradient, torch.where(size > 0, step / size, 0.0)[..., None])
        points = _projected(batch.start, delta, radius, p=p, box=box)
        delta = torch.sub(points, batch.start, out=delta)
        length = norm(delta, p=p)
    best.offer(points, length, batch.success(points))
    return best


def _projected(
    start: Tensor, delta: Tensor, radius: Tensor, *, p: float, box: tuple[float, float] | None
) -> Tensor:
    """The points at delta, projected on the ball of this radius and then on the box."""
    if p == torch.inf:
        return clip(start + project(delta, radius, p=p), box)
    size = norm(delta, p=2)
    return along(start, delta, torch.where(size > radius, radius / size, 1.0), box)
