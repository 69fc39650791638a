"""What is known of the place where a ray leaves its class, and the scales on which it is looked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, margins, sure_margins
from empirical.ensembles import Ensemble

# A found point is put this far beyond the boundary, relative to the step and to the size of x, but never
# past the middle of what is left of its piece: enough for float64 logits to show the changed decision
# after x + t * direction has been rounded, negligible as a distance. In float32, ``ROUNDINGS`` of it.
OVERSHOOT = 1e-7
_VISIBLE = 1e-12
# Crossings of modules are found to this many roundings of x + t * direction,
ROUNDINGS = 64
# what rounding may take back is moved on by this share at most,
_FURTHEST = 0.11
# and rays are followed this many times as far away as x, or 1, is large: further logits say nothing about x.
_REACH = 2.0**20


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


def scales_along(
    x: Float[Tensor, "n d"], direction: Float[Tensor, "*K n d"]
) -> tuple[Float[Tensor, "*K n"], Float[Tensor, "*K n"], Float[Tensor, "*K n"]]:
    """How exactly and how densely a ray is looked at, and how far: a rounding, a unit and a limit of steps.

    The first two are set by the size of x alone, whatever the units of the data; the unit by 1 where x is 0.
    All are 0 for a direction that is 0.
    """
    size, largest = x.abs().amax(1), direction.abs().amax(-1)
    unit, limit = torch.where(size > 0, size, 1.0), _REACH * size.clamp(min=1.0)
    rounding = ROUNDINGS * torch.finfo(x.dtype).eps * size

    def steps(way: Tensor) -> Tensor:
        return torch.where(largest > 0, way / largest, 0.0)

    return steps(rounding), steps(unit), steps(limit)


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
    *,
    sure: bool = False,
) -> Float[Tensor, "K n"]:
    """The margins of the networks, run again, at x + at * direction; inf but for the rays asked for.

    The sure ones (:func:`empirical.attacks.active.sure_margins`) if asked for.
    """
    active = ActiveSet.of(where)
    found = torch.full_like(at, torch.inf)
    if len(active.members):
        points = active.take(x.expand_as(direction)) + active.take(at)[..., None] * active.take(direction)
        logits = ensemble.select(active.members).logits(points)
        leads = (sure_margins if sure else margins)(logits, active.take(y.expand_as(where)))
        active.put(found, leads, active.live)
    return found


def moved_on(
    step: Float[Tensor, "K n"],
    doubtful: Bool[Tensor, "K n"],
    leads: Callable[[Float[Tensor, "K n"], Bool[Tensor, "K n"]], Float[Tensor, "K n"]],
    *,
    by: float,
    most: float | Float[Tensor, "K n"] = torch.inf,
) -> tuple[Float[Tensor, "K n"], Bool[Tensor, "K n"]]:
    """The doubtful steps, longer by a share ``by`` or ten times that and so on until ``leads`` are negative.

    And which are. Steps beyond ``most``, and longer ones than by a tenth, are not tried; those for which none
    suffices stay.
    """
    clear = torch.zeros_like(doubtful)
    while by <= _FURTHEST and doubtful.any():
        here = (step * (1 + by)).clamp(max=most)
        now = doubtful & (leads(here, doubtful) < 0)
        step, doubtful, clear, by = torch.where(now, here, step), doubtful & ~now, clear | now, 10 * by
    return step, clear


def step_beyond(at: Tensor, end: Tensor, least: Tensor, *, max_step: float) -> Tensor:
    """A step beyond a crossing ``at`` on a linear piece that goes on to ``end``."""
    further = at * (1 + overshoot(at.dtype)) + least
    return further.minimum((at + end) / 2).clamp_(max=max_step)
