"""DeepFool: repeatedly step to the nearest face of the linearised decision region."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, check_attack, check_count, margins, roundings
from empirical.attacks.crossing import overshoot as least_overshoot
from empirical.attacks.geometry import clip, norm
from empirical.attacks.hidden_norms import HiddenNorms
from empirical.attacks.nearest import Nearest, nearest_boundaries
from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_p

# Where rounding decides, the way so far is made this much longer before the next step.
_LONGER = 1.001


def deepfool(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    overshoot: float = 0.02,
    steps: int = 50,
    box: tuple[float, float] | None = None,
    nearest: Nearest | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """DeepFool (Moosavi-Dezfooli et al. 2016) in l_p, p in {2, inf}, against the true label.

    The linearised step is taken in full and scaled by 1 + overshoot before each test, as in the authors'
    code, or by as much as pulled-back points lie beyond the boundary, if that is more: on the boundary itself
    rounding would decide. On a linear model one step is exact up to the overshoot. An example whose gradients
    all vanish is not found. Misclassified examples are found at distance 0. With a box every step is clipped
    to it, features at a wall are left out of gradients that push them through, and a step longer than half of
    the way so far is halved: walls bend the way, and it pays to look again. ``nearest`` are the
    nearest boundaries at x in this norm with this box, for a caller that has them already.
    Raises: InvalidInput for another p, overshoot < 0, steps < 1, or bad shapes, values, labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    p = check_p(p)
    if not 0 <= overshoot < torch.inf:
        raise InvalidInput(f"overshoot is {overshoot}; it must be finite and not negative")
    check_count("steps", steps)
    beyond = 1 + max(overshoot, least_overshoot(x.dtype))
    x_adv = x.expand(ensemble.members, *x.shape).clone()
    hidden = HiddenNorms.of(ensemble) if p == 2 and box is None else None
    found = margins(ensemble.logits(x), y) <= 0
    active = ActiveSet.of(~found)
    nets = ensemble if len(active.members) == ensemble.members else ensemble.select(active.members)
    hidden = hidden and hidden.select(active.members)
    start, true = active.take(x.expand_as(x_adv)), active.take(y.expand_as(found))
    here, total = start, torch.zeros_like(start)
    for iteration in range(steps):
        if not len(active.members):
            break
        if iteration == 0 and nearest:
            step = active.take(nearest.step(p=p))
        elif hidden:
            step = hidden.nearest(here, true).step(p=p)
        else:
            step = nearest_boundaries(nets, here, true, norms=(p,), boxes=(box,))[p, box].step(p=p)
        if box is not None:
            long = norm(step, p=p) > norm(total, p=p) / 2
            step = step * torch.where(long, 0.5, 1.0)[..., None]
        total = total + step if box is None else clip(start + total + step, box) - start
        here = clip(start + beyond * total, box)
        logits = nets.logits(here)
        lead, rounding = margins(logits, true), roundings(logits)
        hit = lead < -rounding
        total = torch.where((lead.abs() <= rounding)[..., None], _LONGER * total, total)
        active.put(x_adv, here, hit)
        active.put(found, hit, hit)
        inner = ActiveSet.of(active.live & ~hit & step.any(2))
        if len(inner.members) < len(active.members):
            nets, hidden = nets.select(inner.members), hidden and hidden.select(inner.members)
        active = active.part(inner)
        start, total, here, true = map(inner.take, (start, total, here, true))
    return x_adv, found
