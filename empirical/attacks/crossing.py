"""What is known of the place where a ray leaves its class, and the scales on which it is looked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, margins
from empirical.ensembles import Ensemble

# A found point is put this far beyond the boundary, relative to the step and to the size of x, but never
# past the middle of what is left of its piece: enough for float64 logits to show the changed decision
# after x + t * direction has been rounded, negligible as a distance. In float32, ``ROUNDINGS`` of it.
OVERSHOOT = 1e-7
_VISIBLE = 1e-12
# Crossings of modules are found to this many roundings of x + t * direction,
ROUNDINGS = 64
# and at most this many times as far away as x, or 1, is large: logits out there say nothing about x.
REACH = 2.0**20


@dataclass(frozen=True)
class Crossing:
    """The smallest t >= 0 at which a ray x + t * direction leaves its class, and a step just beyond it.

    Both are 0 where x is misclassified and inf where no crossing was found. Where ``exact`` is False the ray
    was only looked at in places: it may have left its class earlier, or for a short while unnoticed.
    """

    at: Float[Tensor, "*K n"]
    beyond: Float[Tensor, "*K n"]
    exact: Bool[Tensor, "*K n"]


def least_step(x: Float[Tensor, "n d"], direction: Float[Tensor, "*K n d"]) -> Float[Tensor, "*K n"]:
    """A step that moves x visibly; inf or NaN for a direction that is 0."""
    visible = max(_VISIBLE, ROUNDINGS * torch.finfo(x.dtype).eps)
    return visible * x.abs().amax(1) / direction.abs().amax(-1)


def size_along(x: Float[Tensor, "n d"], direction: Float[Tensor, "*K n d"]) -> Float[Tensor, "*K n"]:
    """The step that goes as far as x, or 1, is large; 0 for a direction that is 0."""
    largest = direction.abs().amax(-1)
    return (x.abs().amax(1).clamp(min=1.0) / largest).where(largest > 0, torch.zeros_like(largest))


def overshoot(dtype: torch.dtype) -> float:
    """How far beyond a crossing a step goes, relative to it, in this precision."""
    return max(OVERSHOOT, ROUNDINGS * torch.finfo(dtype).eps)


def margins_at(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    at: Float[Tensor, "K n"],
    where: Bool[Tensor, "K n"],
) -> Float[Tensor, "K n"]:
    """The margins of the networks, run again, at x + at * direction; inf but for the rays asked for."""
    active = ActiveSet.of(where)
    found = torch.full_like(at, torch.inf)
    if len(active.members):
        points = active.take(x.expand_as(direction)) + active.take(at)[..., None] * active.take(direction)
        logits = ensemble.select(active.members).logits(points)
        active.put(found, margins(logits, active.take(y.expand_as(where))), active.live)
    return found


def step_beyond(at: Tensor, end: Tensor, least: Tensor, *, max_step: float) -> Tensor:
    """A step beyond a crossing ``at`` on a linear piece that goes on to ``end``."""
    further = at * (1 + overshoot(at.dtype)) + least
    return further.minimum((at + end) / 2).clamp_(max=max_step)
