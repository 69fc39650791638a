"""The smallest step along a path that succeeds: places along it, then a secant search between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from empirical.attacks.active import ActiveSet, Batch, Closest, margins
from empirical.attacks.geometry import along

# Where the scan starts and ends, in units of the linearised distance, and the factor between its steps.
_START, _END, _FACTOR = 0.25, 64.0, 1.1
# Places that a search between a failure and a success looks at, and as many precisions as it aims beyond the
# boundary by, for logits in float64 to agree.
_PLACES = 12
PRECISIONS = 64
# A point of an iterative attack is pulled back by so many places, aiming at so much beyond the boundary.
_FINISHING_PLACES, _FINISHING = 4, 1e-4

# Points (k, m, d) of a batch, its ways (k, m, d) and the sizes (k, m) of the steps along them.
Path = Callable[[Batch, Tensor, Tensor], Tensor]


def smallest_step(
    batch: Batch, way: Float[Tensor, "k m d"], path: Path, *, unit: Float[Tensor, "k m"], largest: float
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The point after the smallest step that succeeds, and where there is one.

    Steps grow by a tenth from a quarter of ``unit`` to 64 times that, ``largest`` at most; between the first
    success and the failure before it a secant search follows. An upper bound: success need not be monotone in
    the step, and an interval of success shorter than a tenth can be missed. Nothing is tried where ``unit``
    is 0.
    """
    step, failed = (_START * unit).clamp(max=largest), torch.zeros_like(unit)
    end = (_END * unit).clamp(max=largest)
    found, before, after = torch.full_like(unit, torch.inf), batch.lead.clone(), torch.zeros_like(unit)
    unfinished = unit > 0
    while unfinished.any():
        active = ActiveSet.of(unfinished)
        part, here = batch.part(active), active.take(step)
        lead = margins(part.nets.logits(path(part, active.take(way), here)), part.y)
        hit = lead < 0
        active.put(found, here, hit)
        active.put(after, lead, hit)
        active.put(failed, here, ~hit)
        active.put(before, lead, ~hit)
        unfinished = found.isinf() & (unit > 0) & (failed < end)
        step = torch.where(unfinished, (_FACTOR * step).minimum(end), step)
    success = found.isfinite()
    points = batch.start.clone()
    if success.any():
        active = ActiveSet.of(success)
        part, ways = batch.part(active), active.take(way)
        beyond = PRECISIONS * torch.finfo(unit.dtype).eps
        bracket = Bracket(*(active.take(values) for values in (failed, found, before, after)))
        nearest = between(part, ways, path, bracket, places=_PLACES, beyond=beyond)
        further = path(part, ways, nearest * (1 + beyond))
        clear = part.success(further)
        there = torch.where(clear[..., None], further, path(part, ways, nearest))
        active.put(points, there, clear | part.success(there))
    return points, success


def pulled_back(
    batch: Batch, best: Closest, *, box: tuple[float, float] | None
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The points of an attack that stops somewhere beyond the boundary, moved back to it on their rays.

    Not one moves away; for a few forward passes this gains what many more steps of the attack would.
    """

    def straight(part: Batch, way: Tensor, step: Tensor) -> Tensor:
        return along(part.start, way, step, box)

    way, after = best.points - batch.start, margins(batch.nets.logits(best.points), batch.y)
    bracket = Bracket(torch.zeros_like(after), torch.ones_like(after), batch.lead, after)
    share = between(batch, way, straight, bracket, places=_FINISHING_PLACES, beyond=_FINISHING)
    moved = best.found & (share < 1)
    return torch.where(moved[..., None], straight(batch, way, share), best.points), best.found


@dataclass(frozen=True)
class Bracket:
    """Steps of a failure and of a success, and the margins there."""

    failed: Float[Tensor, "k m"]
    found: Float[Tensor, "k m"]
    before: Float[Tensor, "k m"]
    after: Float[Tensor, "k m"]

    def narrower(self, here: Tensor, lead: Tensor, side: Tensor) -> Bracket:
        """With the place ``here``; ``side`` (1 success, -1 failure) is the place before: a margin that stays
        twice is halved (the Illinois rule)."""
        hit = lead < 0
        stale_before, stale_after = hit & (side > 0), ~hit & (side < 0)
        return Bracket(
            torch.where(hit, self.failed, here),
            torch.where(hit, here, self.found),
            torch.where(hit, torch.where(stale_before, self.before / 2, self.before), lead),
            torch.where(hit, lead, torch.where(stale_after, self.after / 2, self.after)),
        )

    @property
    def zero(self) -> Float[Tensor, "k m"]:
        """Where the secant is 0."""
        return self.failed + (self.found - self.failed) * (self.before / (self.before - self.after))


def between(
    batch: Batch, way: Float[Tensor, "k m d"], path: Path, bracket: Bracket, *, places: int, beyond: float
) -> Float[Tensor, "k m"]:
    """The smallest successful step known after looking at ``places`` places of a bracket, at most.

    They are a share ``beyond`` further than the secant's zero: where the path is in one linear piece the
    first of them succeeds. After a place that leaves more than half of the bracket comes its middle.
    """
    side = torch.zeros_like(bracket.found)
    halve = torch.zeros_like(side, dtype=torch.bool)
    for _ in range(places):
        zero, width = bracket.zero, bracket.found - bracket.failed
        if bool((bracket.found <= zero * (1 + 2 * beyond)).all()):
            break
        here = zero * (1 + beyond)
        inside = (here > bracket.failed) & (here < bracket.found) & ~halve
        here = torch.where(inside, here, (bracket.failed + bracket.found) / 2)
        lead = margins(batch.nets.logits(path(batch, way, here)), batch.y)
        bracket = bracket.narrower(here, lead, side)
        side = torch.where(lead < 0, 1.0, -1.0).to(side.dtype)
        halve = ~halve & (bracket.found - bracket.failed > width / 2)
    return bracket.found
