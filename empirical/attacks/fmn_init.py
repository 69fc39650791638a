"""FMN from points of other classes: it finds boundaries that no gradient at x leads to."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import Batch, Closest, attack_correct, check_attack, check_count
from empirical.attacks.fmn import check_gamma, descend
from empirical.attacks.geometry import clip, norm
from empirical.attacks.search import pulled_back
from empirical.ensembles import Ensemble, MLPEnsemble
from theory.types import InvalidInput, check_p

# Classes whose nearest point is looked at.
_CLASSES = 9
# Places on the way to a point that look for a boundary, and how far beyond it the walk begins.
_PLACES, _BEYOND = 6, 1e-3


def fmn_init(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    others: Float[Tensor, "m _"],
    *,
    p: float,
    starts: int = 5,
    steps: int = 30,
    gamma: float = 0.3,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """FMN with adversarial initialisation (Pintor et al. 2021): the closest point in l_p, p in {2, inf}.

    Of ``others``, any examples, each network takes the one nearest to x of every class but the label that it
    predicts there, nine at most. The way to each crosses a boundary; from the ``starts`` nearest of these
    :func:`fmn` walks, ``steps`` steps each. Found is whatever has a point of another class among ``others``:
    also where scores are constant around x, or lead gradients to a boundary much further away. Where there is
    none, the walk begins at x.
    Raises: InvalidInput for another p, starts or steps < 1, gamma outside (0, 1), or bad shapes, values,
    labels or box.
    """
    check_attack(ensemble, x, y, box=box)
    check_p(p)
    check_count("starts", starts)
    check_count("steps", steps)
    check_gamma(gamma)
    if others.ndim != 2 or not len(others) or others.shape[1] != ensemble.inputs:
        raise InvalidInput(f"others has shape {tuple(others.shape)}; give some, (m, {ensemble.inputs})")
    if others.dtype != x.dtype:
        raise InvalidInput(f"others is {others.dtype}, x {x.dtype}; convert one of them")
    if not others.isfinite().all():
        bad = int((~others.isfinite()).any(1).nonzero()[0])
        raise InvalidInput(f"others[{bad}] holds NaN or infinity; remove it")
    others = clip(others, box)

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        best = Closest.none(batch.start)
        for begin in _nearest(batch, others, p=p, count=starts):
            walked = descend(batch, begin, p=p, steps=steps, gamma=gamma, box=box)
            best.offer(walked.points, walked.distance, walked.found)
        return pulled_back(batch, best, box=box)

    return attack_correct(ensemble, x, y, attack, box=box)


def _nearest(batch: Batch, others: Tensor, *, p: float, count: int) -> list[Closest]:
    """The ``count`` nearest places just beyond a boundary on the ways to the nearest point of each class.

    Inputs that no unit of a fully connected network sees stay where they are.
    """
    nets, start = batch.nets, batch.start
    seen = start.new_ones(nets.members, 1, nets.inputs)
    if isinstance(nets, MLPEnsemble):
        seen = (nets.weights[0] != 0).any(1, keepdim=True).to(start.dtype)
    centre = others.mean(0)  # without it, an offset of the data is all that squares of long vectors hold
    distance = torch.cdist((start - centre) * seen, (others - centre) * seen, p=p)
    logits = nets.logits(others)
    predicted = logits.argmax(2)[:, None]
    behind = (logits < logits.amax(2, keepdim=True)).mT  # classes that no tie of the largest holds
    distance.masked_fill_(~behind.gather(1, batch.y[..., None].expand_as(distance)), torch.inf)
    found = []
    for _ in range(min(nets.classes - 1, _CLASSES)):
        least = distance.min(2, keepdim=True)
        of = predicted.expand_as(distance).gather(2, least.indices)
        distance.masked_fill_(predicted == of, torch.inf)
        points = torch.where(seen > 0, others[least.indices[..., 0]], start)
        there = least.values[..., 0].isfinite() & batch.success(points)
        known = Closest(points, norm(points - start, p=p).masked_fill(~there, torch.inf))
        points, there = pulled_back(batch, known, box=None, places=_PLACES, beyond=_BEYOND)
        points = torch.where(there[..., None], points, start)
        found.append(Closest(points, norm(points - start, p=p).masked_fill(~there, torch.inf)))
    ways = torch.stack([each.distance for each in found])
    rank = ways.argsort(dim=0, stable=True)[:count]
    every = torch.stack([each.points for each in found])
    places = rank[..., None].expand(*rank.shape, start.shape[2])
    return [Closest(*pair) for pair in zip(every.gather(0, places), ways.gather(0, rank), strict=True)]
