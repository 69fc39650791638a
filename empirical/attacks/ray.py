"""Where a ray leaves its class, by the most exact way that the networks allow.

=========================================  ==============================================  =========
networks                                   way                                             found is
=========================================  ==============================================  =========
``MLPEnsemble``                            piece by piece (:mod:`empirical.attacks.walk`)  the first
piecewise-linear modules: linear and       by bands around segments                        the first
convolutional layers, batch-norm, average  (:mod:`empirical.attacks.march`)
and max-pooling, sums, ReLU, leaky ReLU,
clamps
of these, rays that take too many bands;   places along the ray, then bisection            a crossing
all other modules                          (:mod:`empirical.attacks.scan`)
=========================================  ==============================================  =========
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import check_attack, margins, sure_margins
from empirical.attacks.crossing import OVERSHOOT, Crossing, margins_at, moved_on, overshoot
from empirical.attacks.march import march
from empirical.attacks.scan import scan
from empirical.attacks.walk import walk
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble
from empirical.ensembles.segments import NotPiecewiseLinear
from theory.types import InvalidInput

__all__ = ["OVERSHOOT", "Crossing", "beyond_crossing", "crossings", "first_crossing", "shorten"]

# Bands per ray before the rest of it is scanned: a band costs three forward passes, a scan about a hundred.
BANDS = 100
# Places along a ray that a scan looks at, between x and as far away as x is large.
PLACES = 64


def crossings(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    *,
    max_step: float = torch.inf,
    bands: int = BANDS,
    places: int = PLACES,
    ties: bool = True,
) -> Crossing:
    """The smallest t >= 0 at which x + t * direction leaves class y, and for which rays that is certain.

    ``exact`` says so: always for an ``MLPEnsemble``; for a module that is known to be piecewise linear, where
    ``bands`` evaluations settle the ray; all other rays are looked at in ``places`` places. Ties of logits
    count as left, one that is only touched unless rounding hides it; without ``ties``, an ``MLPEnsemble`` is
    followed through them to where the class has changed just beyond. Modules are followed at most 2^20 times
    as far as x, or 1, is large. Where logits overflow, nothing is found.
    Raises: InvalidInput if shapes, values, labels or directions are bad, max_step is negative or NaN,
    bands < 0 or places < 1.
    """
    check_attack(ensemble, x, y)
    _check_points("direction", direction, x, ensemble)
    if not max_step >= 0:
        raise InvalidInput(f"max_step is {max_step}; it must not be negative")
    if bands < 0 or places < 1:
        raise InvalidInput(f"bands is {bands} and places {places}; give at least 0 and 1")
    if isinstance(ensemble, MLPEnsemble):
        return walk(ensemble, x, y, direction, max_step=max_step, ties=ties)
    wrong = margins(ensemble.logits(x), y) <= 0
    at = torch.full_like(wrong, torch.inf, dtype=x.dtype).masked_fill_(wrong, 0.0)
    known, proven = Crossing(at, at.clone(), wrong), torch.zeros_like(at)
    if isinstance(ensemble, ModuleEnsemble):
        try:
            known, proven = march(ensemble, x, y, direction, known, max_step=max_step, bands=bands)
        except NotPiecewiseLinear:
            pass
    return scan(ensemble, x, y, direction, known, proven, max_step=max_step, places=places)


def first_crossing(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    *,
    max_step: float = torch.inf,
) -> tuple[Float[Tensor, "K n"], Float[Tensor, "K n"]]:
    """The smallest t >= 0 at which x + t * direction leaves class y, and a step just beyond it.

    Both are 0 where x is misclassified and inf where the ray keeps its class up to ``max_step``. Ties of
    logits count as left. Exact where :func:`crossings` says so. Raises: InvalidInput if shapes, values or
    labels are bad, or max_step is negative or NaN.
    """
    found = crossings(ensemble, x, y, direction, max_step=max_step)
    return found.at, found.beyond


def beyond_crossing(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    *,
    max_step: float = torch.inf,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The first point of another class on the ray x + t * direction, and whether there is one.

    A tie of logits is none, but for one at x itself, which counts as misclassified. An ``MLPEnsemble`` is
    followed through it, other networks are not. A point that rounding may take back is moved on until it
    cannot, and what the networks, run again, do not misclassify is not found.
    """
    crossing = crossings(ensemble, x, y, direction, max_step=max_step, ties=False)
    step, wrong = crossing.beyond, crossing.beyond == 0

    def leads(at: Tensor, where: Tensor) -> Tensor:
        return margins_at(ensemble, x, y, direction, at, where, sure=True)

    def at(step: Tensor) -> Tensor:
        return x + step.masked_fill(step.isinf(), 0.0)[..., None] * direction

    doubtful = step.isfinite() & ~wrong & ~(sure_margins(ensemble.logits(at(step)), y) < 0)
    step, _ = moved_on(step, doubtful, leads, by=overshoot(x.dtype), most=max_step)
    points = at(step)
    found = wrong | (step.isfinite() & (margins(ensemble.logits(points), y) < 0))
    return torch.where(found[..., None], points, x), found


def shorten(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    x_adv: Float[Tensor, "K n d"],
    found: Bool[Tensor, "K n"],
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """Pull every found point back to the first boundary on its segment from x (:func:`crossings`).

    No point moves away from x, so none leaves a box that holds both ends; one whose pulled-back version
    cannot be told from the boundary stays.
    Raises: InvalidInput if shapes, values, points or labels are bad.
    """
    check_attack(ensemble, x, y)
    _check_points("x_adv", x_adv, x, ensemble)
    direction = torch.where(found[..., None], x_adv - x, 0.0)
    shorter, hit = beyond_crossing(ensemble, x, y, direction, max_step=1.0)
    shorter = shorter.clamp(torch.minimum(x, x_adv), torch.maximum(x, x_adv))
    better = hit & found & (sure_margins(ensemble.logits(shorter), y) < 0)
    return torch.where(better[..., None], shorter, x_adv), found


def _check_points(name: str, points: Tensor, x: Tensor, ensemble: Ensemble) -> None:
    """Raises: InvalidInput unless there is a finite vector of the kind of x for every network and example."""
    wanted = (ensemble.members, *x.shape)
    if points.shape != wanted:
        raise InvalidInput(f"{name} has shape {tuple(points.shape)}; expected {wanted}, (networks, *x.shape)")
    if points.dtype != x.dtype or points.device != x.device:
        raise InvalidInput(
            f"{name} is {points.dtype} on {points.device}, x {x.dtype} on {x.device}; convert one of them"
        )
    if points.numel() and not torch.stack(points.aminmax()).isfinite().all():
        member, row, _ = (~points.isfinite()).nonzero()[0].tolist()
        raise InvalidInput(f"{name}[{member}, {row}] holds NaN or infinity; remove it")
