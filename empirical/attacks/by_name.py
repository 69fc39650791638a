"""The attacks that experiments name, each run the fastest way that measures the same.

The long searches (both of FMN, DDN, PGD, C&W) need hundreds of passes to end next to a boundary; where
exactly it lies is then one ray's question. So they run in float32, and in float64 every point is moved a
little further out and pulled back to a boundary on its ray: the first one in fully connected networks, where
that is cheap.
An example for which that finds nothing is searched again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import Batch, Closest, attack_correct, margins
from empirical.attacks.carlini_wagner import carlini_wagner
from empirical.attacks.crossing import OVERSHOOT
from empirical.attacks.ddn import ddn
from empirical.attacks.deepfool import deepfool
from empirical.attacks.fgsm import minimal_fgs, minimal_rfgs
from empirical.attacks.fmn import fmn
from empirical.attacks.fmn_init import fmn_init
from empirical.attacks.geometry import clip
from empirical.attacks.nearest import Nearest
from empirical.attacks.pgd import minimal_pgd
from empirical.attacks.ray import shorten
from empirical.attacks.search import pulled_back
from empirical.attacks.strongest import STEPS, closest
from empirical.ensembles import Ensemble, MLPEnsemble
from theory.types import InvalidInput

Box = tuple[float, float] | None
Search = Callable[[Ensemble, Tensor, Tensor, Box], tuple[Tensor, Tensor]]

# How much further out a float32 search's point is moved: well beyond the rounding of float32 logits.
_BEYOND = 1e-4
# A change of every entry below this share of the largest entry is no longer many float32 roundings.
_COARSE = 1e-3
# Places that close a bracket around a boundary to ``OVERSHOOT``.
_PLACES = 12


def attacked(
    name: str,
    nets: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    nearest: Mapping[tuple[float, Box], Nearest],
    others: Float[Tensor, "m d"],
    box: Box,
    first: int = 0,
) -> Iterator[tuple[float, str, Float[Tensor, "K n d"], Bool[Tensor, "K n"]]]:
    """What the attack ``name`` finds, as (p, method, x_adv, found); DeepFool also pulled back along its ray.

    ``nearest`` are the nearest boundaries at x, with this box; ``others`` the examples that ``fmn-init``
    starts from; ``first`` is the place of x[0] in the data, for what is drawn.
    Raises: InvalidInput for an unknown name.
    """
    if name == "fgs":
        yield math.inf, name, *minimal_fgs(nets, x, y, box=box)
    elif name == "rfgs":
        yield math.inf, name, *minimal_rfgs(nets, x, y, first=first, box=box)
    elif name == "deepfool":
        for p in (2.0, math.inf):
            x_adv, found = deepfool(nets, x, y, p=p, nearest=nearest[p, box], box=box)
            yield p, name, x_adv, found
            yield p, f"{name}+line", *shorten(nets, x, y, x_adv, found)
    elif name in _SEARCHES:
        for p in _SEARCHES[name]:
            yield p, name, *searched(_search(name, others, p=p), nets, x, y, p=p, box=box)
    else:
        known = ("fgs", "rfgs", "deepfool", *_SEARCHES)
        raise InvalidInput(f"attack {name!r} is unknown; give a tuple of some of {', '.join(known)}")


# The norms of the long searches.
_SEARCHES = {
    "pgd": (2.0, math.inf),
    "fmn": (2.0, math.inf),
    "fmn-init": (2.0, math.inf),
    "ddn": (2.0,),
    "cw": (2.0,),
}


def _search(name: str, others: Float[Tensor, "m d"], *, p: float) -> Search:
    if name == "pgd":
        return lambda nets, x, y, box: minimal_pgd(nets, x, y, p=p, box=box)
    if name == "fmn":
        return lambda nets, x, y, box: fmn(nets, x, y, p=p, steps=STEPS, box=box)
    if name == "fmn-init":
        return lambda nets, x, y, box: fmn_init(nets, x, y, others.to(x.dtype), p=p, box=box)
    l2 = ddn if name == "ddn" else carlini_wagner
    return lambda nets, x, y, box: l2(nets, x, y, steps=STEPS, box=box)


def searched(
    search: Search,
    nets: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    p: float,
    box: Box = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The points of a search in float32, each pulled back in float64 to the first boundary on its ray.

    ``nets`` and ``x`` are float64, and so is what says that a point is found. What float32 cannot hold, finds
    nothing for, or finds so near that rounding led it, is searched in float64.
    """
    x_adv = x.expand(nets.members, *x.shape).clone()
    found = torch.zeros(x_adv.shape[:2], dtype=torch.bool, device=x.device)
    try:
        fast = nets.to(dtype=torch.float32, device=x.device)
    except InvalidInput:  # a weight is too large
        pass
    else:
        rounded = None if box is None else (float(np.float32(box[0])), float(np.float32(box[1])))
        rough = clip(x.float(), rounded)
        if rough.isfinite().all() and (rounded is None or -np.inf < rounded[0] < rounded[1] < np.inf):
            x_adv, found = _pulled_back(nets, x, y, *search(fast, rough, y, rounded), box=box)
    moved = (x_adv - x).abs().amax(2)
    wrong = margins(nets.logits(x), y) <= 0
    unsure = ~wrong & (~found | (moved < _COARSE * x.abs().amax(1)))
    again = unsure.any(0)  # for the members that are unsure: what is found of one depends on no other
    if again.any():
        some_x, some_y = x[again], y[again]
        found_again = _pulled_back(nets, some_x, some_y, *search(nets, some_x, some_y, box), box=box)
        closer, any_found = closest(some_x, [found_again, (x_adv[:, again], found[:, again])], p=p)
        x_adv[:, again] = torch.where(unsure[:, again, None], closer, x_adv[:, again])
        found[:, again] = torch.where(unsure[:, again], any_found, found[:, again])
    return x_adv, found


def _pulled_back(
    nets: Ensemble, x: Tensor, y: Tensor, x_adv: Tensor, found: Tensor, *, box: Box
) -> tuple[Tensor, Tensor]:
    """Found points moved a little out, then back to the first boundary on their ray; x where that fails.

    A point that cannot be moved out stays, if it is misclassified.
    """
    x_adv = x_adv.to(x.dtype)
    further = clip(x + (1 + _BEYOND) * (x_adv - x), box)
    if isinstance(nets, MLPEnsemble):
        points, _ = shorten(nets, x, y, further, found)
    else:
        points = _bracketed(nets, x, y, further)
    points = torch.where((margins(nets.logits(points), y) < 0)[..., None], points, clip(x_adv, box))
    wrong = margins(nets.logits(x), y) <= 0
    found = wrong | (found & (margins(nets.logits(points), y) < 0))
    return torch.where((found & ~wrong)[..., None], points, x), found


def _bracketed(nets: Ensemble, x: Tensor, y: Tensor, end: Tensor) -> Tensor:
    """Points just beyond a boundary between x and ``end``; x where ``end`` is of no other class."""

    def bracketed(batch: Batch) -> tuple[Tensor, Tensor]:
        points = batch.of(end)
        known = Closest(points, torch.zeros_like(batch.lead).masked_fill(~batch.success(points), torch.inf))
        return pulled_back(batch, known, box=None, places=_PLACES, beyond=OVERSHOOT)

    return attack_correct(nets, x, y, bracketed)[0]
