"""DeepFool: repeatedly step to the nearest face of the linearised decision region."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, check_attack, check_count, margins
from empirical.attacks.geometry import clip, feasible, norm
from empirical.attacks.hidden_norms import HiddenNorms
from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_p


def deepfool(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    overshoot: float = 0.02,
    steps: int = 50,
    box: tuple[float, float] | None = None,
    linearised: tuple[Float[Tensor, "K n c"], Float[Tensor, "K n c d"]] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """DeepFool (Moosavi-Dezfooli et al. 2016) in l_p, p in {2, inf}, against the true label.

    The linearised step is taken in full and scaled by 1 + overshoot before each test, as in the authors'
    code. On a linear model one step is exact up to the overshoot. An example whose gradients all vanish
    is not found. Misclassified examples are found at distance 0. With a box every step is clipped to it,
    features at a wall are left out of gradients that push them through, and a step longer than half the way
    so far is halved: walls bend the way, and it pays to look again. ``linearised`` are the logits and
    Jacobian at x, for a caller that has them already.
    Raises: InvalidInput for another p, overshoot < 0, steps < 1, or bad shapes, values, labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    q = 2 if check_p(p) == 2 else 1
    if not 0 <= overshoot < torch.inf:
        raise InvalidInput(f"overshoot is {overshoot}; it must be finite and not negative")
    check_count("steps", steps)
    x_adv = x.expand(ensemble.members, *x.shape).clone()
    hidden = HiddenNorms.of(ensemble) if p == 2 and box is None else None
    if linearised is None and hidden is None:
        linearised = ensemble.logits_and_jacobian(x)
    found = margins(linearised[0] if linearised else ensemble.logits(x), y) <= 0
    moved = torch.zeros_like(x_adv)
    unfinished = ~found
    for iteration in range(steps):
        if not unfinished.any():
            break
        active = ActiveSet.of(unfinished)
        whole = len(active.members) == ensemble.members
        nets = ensemble if whole else ensemble.select(active.members)
        start, total = active.take(x.expand_as(x_adv)), active.take(moved)
        true = active.take(y.expand_as(found))
        here = clip(start + (1 + overshoot) * total, box)
        if iteration == 0 and linearised:
            logits, jacobian = map(active.take, linearised)
            step = _step(logits, jacobian, here, true, q=q, box=box)
        elif hidden:
            step = (hidden if whole else hidden.select(active.members)).step(here, true)
        else:
            logits, jacobian = nets.logits_and_jacobian(here)
            step = _step(logits, jacobian, here, true, q=q, box=box)
        if box is not None:
            long = norm(step, p=p) > norm(total, p=p) / 2
            step = step * torch.where(long, 0.5, 1.0)[..., None]
        total = clip(start + total + step, box) - start
        reached = clip(start + (1 + overshoot) * total, box)
        hit = margins(nets.logits(reached), true) < 0
        active.put(moved, total, torch.ones_like(hit))
        active.put(x_adv, reached, hit)
        active.put(found, hit, torch.ones_like(hit))
        stuck = ~step.any(2)
        active.put(unfinished, ~(hit | stuck), torch.ones_like(hit))
    return x_adv, found


def _step(
    logits: Tensor, jacobian: Tensor, here: Tensor, y: Tensor, *, q: int, box: tuple[float, float] | None
) -> Tensor:
    """Shortest step onto the nearest linearised boundary g_k = g_y; 0 where no gradient points to one."""
    true, inputs = y[..., None], jacobian.shape[3]
    gap = logits.gather(2, true) - logits
    pull = jacobian - jacobian.gather(2, true[..., None].expand(*true.shape, inputs))
    pull = feasible(pull, here[:, :, None], box)
    size = pull.abs().sum(3) if q == 1 else pull.norm(dim=3)
    distance = torch.where(size > 0, gap.abs() / size, torch.inf).scatter(2, true, torch.inf)
    nearest = distance.argmin(2, keepdim=True)
    reachable = distance.gather(2, nearest).isfinite()
    size = size.gather(2, nearest)
    pull = pull.gather(2, nearest[..., None].expand(*true.shape, inputs))[:, :, 0]
    unit = pull.sign() if q == 1 else pull / torch.where(reachable, size, 1.0)
    length = (gap.gather(2, nearest).abs() / torch.where(reachable, size, 1.0)) * reachable
    return length * unit
