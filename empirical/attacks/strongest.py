"""The closest point that any attack finds: what measured radii should be compared with bounds by."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.carlini_wagner import carlini_wagner
from empirical.attacks.ddn import ddn
from empirical.attacks.deepfool import deepfool
from empirical.attacks.fgsm import minimal_fgs
from empirical.attacks.fmn import fmn
from empirical.attacks.fmn_init import fmn_init
from empirical.attacks.geometry import norm
from empirical.attacks.pgd import minimal_pgd
from empirical.attacks.ray import shorten
from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_p

Found = tuple[Tensor, Tensor]
# Of FMN, DDN and C&W where the distance matters more than the time: half as many, FMN's and DDN's default,
# end a few thousandths further out.
STEPS = 100
# Walks from other examples, by effort.
_STARTS = {2: 5, 3: 9}


def strongest(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    effort: int = 2,
    others: Float[Tensor, "m d"] | None = None,
    seed: int = 0,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """Of the points of several attacks, each pulled back to the boundary, the closest to x in l_p.

    ======  ==========================================  ==========================================
    effort  l_2                                         l_inf
    ======  ==========================================  ==========================================
    1       DeepFool                                    DeepFool, smallest FGS step
    2       and FMN, DDN                                and FMN
    3       and FMN towards each class, C&W             and FMN towards each class, minimal PGD
    ======  ==========================================  ==========================================

    With ``others``, examples of any class, FMN starts there too from effort 2 on (:func:`fmn_init`), which
    finds boundaries that no gradient at x leads to.
    Local attacks end at the class that is nearest at first sight; aiming at every class in turn finds more
    than ten times the steps do.
    Raises: InvalidInput for another p or effort, or bad shapes, values, labels or box.
    """
    check_p(p)
    if effort not in (1, 2, 3):
        raise InvalidInput(f"effort is {effort}; it is 1, 2 or 3")
    found = [deepfool(ensemble, x, y, p=p, box=box)]
    if p == torch.inf:
        found.append(minimal_fgs(ensemble, x, y, box=box))
    if effort >= 2:
        found.append(fmn(ensemble, x, y, p=p, steps=STEPS, box=box))
        if others is not None:
            found.append(fmn_init(ensemble, x, y, others, p=p, starts=_STARTS[effort], box=box))
        if p == 2:
            found.append(ddn(ensemble, x, y, steps=STEPS, box=box))
    if effort == 3:
        for k in range(1, ensemble.classes):
            target = (y + k) % ensemble.classes
            found.append(fmn(ensemble, x, y, p=p, steps=STEPS, target=target, box=box))
    if effort == 3 and p == 2:
        found.append(carlini_wagner(ensemble, x, y, steps=STEPS, box=box))
    elif effort == 3:
        found.append(minimal_pgd(ensemble, x, y, p=p, restarts=2, seed=seed, box=box))
    return closest(x, [shorten(ensemble, x, y, *each) for each in found], p=p)


def closest(x: Float[Tensor, "n d"], found: list[Found], *, p: float) -> Found:
    """Of several attacks' points, the closest found one for every example."""
    best, success = found[0]
    distance = torch.where(success, norm(best - x, p=p), torch.inf)
    for points, hit in found[1:]:
        length = torch.where(hit, norm(points - x, p=p), torch.inf)
        closer = length < distance
        best = torch.where(closer[..., None], points, best)
        distance, success = torch.where(closer, length, distance), success | hit
    return best, success
