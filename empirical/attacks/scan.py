"""A crossing on a ray of any network, by looking at places along it: not necessarily the first one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, margins
from empirical.attacks.crossing import ROUNDINGS, Crossing, least_step, overshoot, scales_along
from empirical.ensembles import Ensemble

# Further away than x is large the steps grow: this many places per doubling of the distance.
_PER_DOUBLING = 4


def scan(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    known: Crossing,
    proven: Float[Tensor, "K n"],
    *,
    max_step: float,
    places: int,
) -> Crossing:
    """``known``, with the rays that are not exact looked at from ``proven`` on, and bisected where they left.

    ``places`` places at equal steps, as far as x is large or to ``max_step``, then four per doubling of the
    distance. What is found is a place where the class changes, to the rounding; the ray may have left its
    class earlier, and come back between two places.
    """
    rounding, *ends = scales_along(x, direction)
    unit, end = (each.clamp(max=max_step) for each in ends)
    left_by, kept = torch.full_like(end, torch.inf), proven.clone()
    looking = ~known.exact & (proven < end)
    step = 0
    while looking.any():
        step += 1
        share = step / places if step <= places else 2 ** ((step - places) / _PER_DOUBLING)
        here = (proven + share * unit).minimum(end)
        left = _has_left(ensemble, x, y, direction, here, looking)
        left_by = torch.where(left, here, left_by)
        kept = torch.where(looking & ~left, here, kept)
        looking &= ~left & (here < end)
    return _bisected(ensemble, x, y, direction, known, kept, left_by, rounding)


def _bisected(
    ensemble: Ensemble,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    known: Crossing,
    low: Tensor,
    high: Tensor,
    rounding: Tensor,
) -> Crossing:
    """The same with a crossing between ``low`` and ``high``, where that is finite, to the rounding."""
    found, share = high.isfinite(), ROUNDINGS * torch.finfo(x.dtype).eps
    rounding = rounding.clamp(min=torch.finfo(x.dtype).tiny)  # a jump at 0 itself ends, too
    wide = found & (high - low > rounding + share * high)
    while wide.any():
        middle = (low + high) / 2
        left = _has_left(ensemble, x, y, direction, middle, wide)
        high, low = torch.where(left, middle, high), torch.where(wide & ~left, middle, low)
        wide &= high - low > rounding + share * high
    further = high * (1 + overshoot(high.dtype)) + least_step(x, direction)
    visible = _has_left(ensemble, x, y, direction, further, found)
    beyond = torch.where(visible, further, high)
    return Crossing(torch.where(found, high, known.at), torch.where(found, beyond, known.beyond), known.exact)


def _has_left(
    ensemble: Ensemble, x: Tensor, y: Tensor, direction: Tensor, at: Tensor, where: Tensor
) -> Tensor:
    """Whether a ray has another class, or a tie, at a time; False but for the rays asked for."""
    active = ActiveSet.of(where)
    found = torch.zeros_like(where)
    if len(active.members):
        points = active.take(x.expand_as(direction)) + active.take(at)[..., None] * active.take(direction)
        logits = ensemble.select(active.members).logits(points)
        left = margins(logits, active.take(y.expand_as(where))) <= 0
        active.put(found, left, torch.ones_like(left))
    return found
