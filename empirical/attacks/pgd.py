"""Projected gradient descent in a ball of given radius, and the smallest radius at which it succeeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
from empirical.attacks.geometry import clip, feasible, norm, project, unit_step
from empirical.attacks.search import cleared
from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_p

# This many radii are walked in all, so that a corner of the ball is reached from any start.
_PATH = 2.5
# The first radius, in linearised distances: at 1, rounding would decide the success on a linear model.
_FIRST = 1.01
# How often the first radius is doubled in search of one that succeeds.
_DOUBLINGS = 12


def pgd(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    eps: float,
    steps: int = 40,
    restarts: int = 1,
    seed: int = 0,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """PGD (Madry et al. 2018): the first point of another class met on the way, within l_p distance eps.

    That distance holds up to the rounding of x + delta.
    The first run starts at x, every further one at a random point of the ball, which depends on the seed, the
    run and the example's place in x alone: it is the same for all members. Each run takes ``steps`` steps of
    2.5 eps / steps up the lead of the other classes, and the point after the last step counts too.
    Raises: InvalidInput for another p, a negative eps or seed, steps or restarts < 1, or bad shapes, values,
    labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    _check(p, steps, restarts)
    if not 0 <= eps < torch.inf:
        raise InvalidInput(f"eps is {eps}; the radius must be finite and not negative")
    noise = _noise(x, p=p, restarts=restarts, seed=seed)

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        return _runs(batch, torch.full_like(batch.lead, eps), noise, p=p, steps=steps, box=box)

    return attack_correct(ensemble, x, y, attack, box=box)


def minimal_pgd(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    steps: int = 40,
    restarts: int = 1,
    halvings: int = 10,
    seed: int = 0,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The closest point found by PGD in balls whose radius is searched by bisection.

    The radius starts just above the linearised distance and doubles, up to 2^12 times that, until PGD
    succeeds; then ``halvings`` bisections follow, each between the largest radius that failed and the
    distance of the closest point. Success need not be monotone in the radius, so this is an upper bound even
    of what PGD can do. The random starts are those of :func:`pgd`, in balls of any radius; where no gradient
    at x leads to a boundary, they alone can succeed, in balls that double up to the l_p length of x.
    Raises: InvalidInput for another p, steps, restarts or halvings < 1, a negative seed, or bad shapes,
    values, labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    _check(p, steps, restarts)
    check_count("halvings", halvings)
    noise = _noise(x, p=p, restarts=restarts, seed=seed)

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        return _bisect(batch, noise, p=p, steps=steps, halvings=halvings, box=box)

    return attack_correct(ensemble, x, y, attack, box=box)


def _check(p: float, steps: int, restarts: int) -> None:
    check_p(p)
    check_count("steps", steps)
    check_count("restarts", restarts)


def _noise(x: Tensor, *, p: float, restarts: int, seed: int) -> list[Tensor]:
    """Uniform points of the unit ball, for every run but the first; drawn alike on all devices.

    The two entries more that points of the l_2 ball are drawn with make what is left of them, at length 1,
    uniform in it.
    """
    check_count("seed", seed, least=0)
    n, d = x.shape
    found = []
    for run in range(1, restarts):
        generator = np.random.default_rng([seed, run])
        if p == torch.inf:
            noise = torch.from_numpy(generator.uniform(-1, 1, (n, d)))
        else:
            noise = unit_step(torch.from_numpy(generator.standard_normal((n, d + 2))), p=2)[:, :d]
        found.append(noise.to(device=x.device, dtype=x.dtype))
    return found


def _bisect(
    batch: Batch,
    noise: Sequence[Tensor],
    *,
    p: float,
    steps: int,
    halvings: int,
    box: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    radius = batch.boundary(p=p, box=box) * _FIRST
    if noise:
        radius = torch.where(radius > 0, radius, batch.extent(p=p) / 2**_DOUBLINGS)
    best, low, left = Closest.none(batch.start), torch.zeros_like(radius), torch.full_like(radius, halvings)
    largest = radius * 2**_DOUBLINGS
    if box is not None:
        width = box[1] - box[0]
        largest = largest.clamp(max=width * (batch.start.shape[2] ** 0.5 if p == 2 else 1))
    while True:
        unfinished = torch.where(best.found, left > 0, low < largest)
        if not unfinished.any():
            return cleared(batch, best, box=box)
        active = ActiveSet.of(unfinished)
        take, part = active.take, batch.part(active)
        trial = take(radius)
        points, success = _runs(part, trial, noise, p=p, steps=steps, box=box)
        distance, everywhere = norm(points - part.start, p=p), torch.ones_like(success)
        closer = success & (distance < take(best.distance))
        active.put(left, take(left) - take(best.found).to(left.dtype), everywhere)
        active.put(best.points, points, closer)
        active.put(best.distance, distance, closer)
        active.put(low, torch.where(success, take(low), trial), everywhere)
        radius = torch.where(best.found, (low + best.distance) / 2, (2 * radius).minimum(largest))


def _runs(
    batch: Batch,
    radius: Tensor,
    noise: Sequence[Tensor],
    *,
    p: float,
    steps: int,
    box: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """One run from the centre and one from every point of noise, until one succeeds."""
    points, success = _run(batch, batch.start, radius, p=p, steps=steps, box=box)
    for start in noise:
        if success.all():
            break
        active = ActiveSet.of(~success)
        part, within = batch.part(active), active.take(radius)
        begin = clip(part.start + within[..., None] * start[part.rows], box)
        more, hit = _run(part, begin, within, p=p, steps=steps, box=box)
        active.put(points, more, hit)
        active.put(success, hit, hit)
    return points, success


def _run(
    batch: Batch, begin: Tensor, radius: Tensor, *, p: float, steps: int, box: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """Steps of equal length, projected on the ball and the box; of every example the first success."""
    found, success = batch.start.clone(), torch.zeros_like(batch.y, dtype=torch.bool)
    active, part, points = ActiveSet.of(~success), batch, begin
    for _ in range(steps):
        logits, gradient = part.nets.logits_and_gradient(points, part.loss)
        hit = (margins(logits, part.y) < 0) & ~active.take(success)
        active.put(found, points, hit)
        active.put(success, hit, hit)
        gone = active.take(success) | ~active.live
        if gone.all():
            return found, success
        if 4 * gone.sum() > gone.numel():
            kept = ActiveSet.of(~gone)
            points, gradient = kept.take(points), kept.take(gradient)
            part, active = part.part(kept), active.part(kept)
        within = active.take(radius)
        step = unit_step(feasible(gradient, points, box), p=p) * (_PATH * within / steps)[..., None]
        points = clip(part.start + project(points + step - part.start, within, p=p), box)
    hit = part.success(points) & ~active.take(success)
    active.put(found, points, hit)
    active.put(success, hit, hit)
    return found, success
