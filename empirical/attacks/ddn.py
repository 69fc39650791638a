"""Decoupled direction and norm: gradient steps at a radius that success shrinks and failure grows."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import Batch, Closest, attack_correct, check_attack, check_count, margins
from empirical.attacks.geometry import along, feasible, norm
from empirical.attacks.search import pulled_back
from empirical.ensembles import Ensemble
from theory.types import InvalidInput

# The step at the end, relative to the first one (the authors' schedule).
_LAST_STEP = 0.01


def ddn(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    steps: int = 50,
    gamma: float = 0.05,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """DDN (Rony et al. 2019): the closest point in l_2 found in ``steps`` gradient steps, on the boundary.

    The radius changes by a factor 1 - gamma after a success and 1 + gamma after a failure. It starts at the
    linearised distance to the boundary, which is also the first step (both 1 in the paper, where the data's
    scale is known), and the loss is the lead of the runner-up (there the cross-entropy): neither the scale of
    the data nor that of the logits matters. The point found is pulled back to the boundary on its ray, which
    gains as much as doubling the steps (docs/benchmarks.md). Raises: InvalidInput for steps < 1, gamma
    outside (0, 1), or bad shapes, values, labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    check_count("steps", steps)
    if not 0 < gamma < 1:
        raise InvalidInput(f"gamma is {gamma}; the relative change of the radius lies in (0, 1)")

    return attack_correct(
        ensemble, x, y, lambda batch: _walk(batch, steps=steps, gamma=gamma, box=box), box=box
    )


def _walk(
    batch: Batch, *, steps: int, gamma: float, box: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    best, points, loss = Closest.none(batch.start), batch.start, batch.loss
    delta = torch.zeros_like(points)
    first = length = radius = torch.zeros_like(batch.lead)
    for i in range(steps):
        logits, gradient = batch.nets.logits_and_gradient(points, loss)
        gradient = feasible(gradient, points, box)
        size = norm(gradient, p=2)
        if i == 0:
            first = radius = torch.where(size > 0, batch.gap(logits) / size, 0.0)
        else:
            success = margins(logits, batch.y) < 0
            best.offer(points, length, success)
            radius = radius * torch.where(success, 1 - gamma, 1 + gamma)
        decay = _LAST_STEP + (1 - _LAST_STEP) * (1 + math.cos(math.pi * i / steps)) / 2
        delta.addcmul_(gradient, torch.where(size > 0, decay * first / size, 0.0)[..., None])
        size = norm(delta, p=2)
        share = torch.where(size > 0, radius / size, 0.0)
        points = along(batch.start, delta, share, box)
        delta = torch.sub(points, batch.start, out=delta)
        length = norm(delta, p=2)
    best.offer(points, length, batch.success(points))
    return pulled_back(batch, best, box=box)
