"""The smallest step along a path that succeeds: places along it, then a secant search between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from empirical.attacks.active import ActiveSet, Batch, Closest, margins, roundings, sure_margins
from empirical.attacks.crossing import ROUNDINGS, moved_on, overshoot
from empirical.attacks.geometry import along

# Where the scan starts and ends, in units of the linearised distance, and the factor between its steps.
_START, REACH, _FACTOR = 0.5, 64.0, 1.1
# Places that a search between a failure and a success looks at.
_PLACES = 16
# A point of an iterative attack is pulled back by so many places, aiming at so much beyond the boundary.
_FINISHING_PLACES, _FINISHING = 4, 1e-4
# One that is no further beyond than this share of that lies on the boundary.
_ON_IT = 1e-3
# Examples are packed anew when this share of them is done: packing costs as much as a third of a pass.
_DONE_SHARE = 0.25

# Points (k, m, d) of a batch, its ways (k, m, d) and the sizes (k, m) of the steps along them.
Path = Callable[[Batch, Tensor, Tensor], Tensor]


def smallest_step(
    batch: Batch, way: Float[Tensor, "k m d"], path: Path, *, unit: Float[Tensor, "k m"], largest: float
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The point after the smallest step that succeeds, and where there is one.

    Steps grow by a tenth from half of ``unit`` to 128 times that, ``largest`` at most; between the first
    success and the failure before it a secant search follows. An upper bound: success need not be monotone in
    the step, and an interval of success shorter than a tenth can be missed. Nothing is tried where ``unit``
    is 0.
    """
    places = _Places(batch, way, path)
    step, end = (_START * unit).clamp(max=largest), (REACH * unit).clamp(max=largest)
    bracket = Bracket(
        torch.zeros_like(unit), torch.full_like(unit, torch.inf), batch.lead, torch.zeros_like(unit)
    )
    unfinished = unit > 0
    while unfinished.any():
        bracket = bracket.narrower(step, places.margins(step, unfinished), unfinished)
        unfinished = unfinished & bracket.found.isinf() & (bracket.failed < end)
        step = torch.where(unfinished, (_FACTOR * step).minimum(end), step)
    success, beyond = bracket.found.isfinite(), overshoot(unit.dtype)
    nearest = between(places, bracket, success, count=_PLACES, beyond=beyond).found.masked_fill(~success, 0.0)
    # By as much as x and its logits are rounded, for the success to be one in every product.
    further = nearest + ROUNDINGS * torch.finfo(unit.dtype).eps * batch.start.abs().amax(2)
    step, clear = moved_on(further, success, places.sure_margins, by=beyond, most=largest)
    return path(batch, way, torch.where(clear, step, nearest)), success


def pulled_back(
    batch: Batch,
    best: Closest,
    *,
    box: tuple[float, float] | None,
    places: int = _FINISHING_PLACES,
    beyond: float = _FINISHING,
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The points of an attack that stops somewhere beyond the boundary, moved back to it on their rays.

    For a few forward passes this gains what many more steps of the attack would. Points end a share
    ``beyond`` of their way past the boundary, if ``places`` on it suffice; one that was on the boundary is
    moved on as far, so that it is of another class however the products behind its logits are rounded.
    """
    ray, found, whole = _Places.ray(batch, best, box), best.found, torch.ones_like(best.distance)
    leads, rounding = ray.leads(whole, found)
    bracket = Bracket(torch.zeros_like(whole), whole, batch.lead, leads)
    bracket = between(ray, bracket, found, count=places, beyond=beyond)
    on_it = (bracket.found < bracket.zero * (1 + _ON_IT * beyond)) | (bracket.after > -rounding)
    share, _ = moved_on(bracket.found, found & on_it, ray.sure_margins, by=beyond)
    moved = found & (share != 1)
    return torch.where(moved[..., None], ray.path(batch, ray.way, share), best.points), found


def cleared(
    batch: Batch, best: Closest, *, box: tuple[float, float] | None
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The points of an attack, those that rounding may take back moved on until it cannot."""
    doubtful = best.found & ~(sure_margins(batch.nets.logits(best.points), batch.y) < 0)
    ray = _Places.ray(batch, best, box)
    whole, by = torch.ones_like(best.distance), overshoot(best.distance.dtype)
    share, moved = moved_on(whole, doubtful, ray.sure_margins, by=by)
    return torch.where(moved[..., None], ray.path(batch, ray.way, share), best.points), best.found


@dataclass
class _Places:
    """Where the margins along the ways of a batch are asked for, only of the examples that need them."""

    batch: Batch
    way: Float[Tensor, "k m d"]
    path: Path
    _held: Tensor | None = None  # the examples that are packed
    _packed: tuple[ActiveSet, Batch, Tensor] | None = None

    @staticmethod
    def ray(batch: Batch, best: Closest, box: tuple[float, float] | None) -> _Places:
        """Those on the straight ways to these points, which are a step of 1 away."""

        def straight(part: Batch, way: Tensor, step: Tensor) -> Tensor:
            return along(part.start, way, step, box)

        return _Places(batch, best.points - batch.start, straight)

    def margins(self, step: Float[Tensor, "k m"], where: Bool[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """The margins after these steps; inf where they are not asked for."""
        return self.leads(step, where)[0]

    def sure_margins(self, step: Float[Tensor, "k m"], where: Bool[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """The same, sure ones (:func:`empirical.attacks.active.sure_margins`)."""
        leads, rounding = self.leads(step, where)
        return leads + rounding

    def leads(
        self, step: Float[Tensor, "k m"], where: Bool[Tensor, "k m"]
    ) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k m"]]:
        """Those margins and their :func:`empirical.attacks.active.roundings`; 0 where not asked for."""
        leads, rounding = torch.full_like(step, torch.inf), torch.zeros_like(step)
        if where.any():
            active, part, way = self._pack(where)
            logits = part.nets.logits(self.path(part, way, active.take(step)))
            active.put(leads, margins(logits, part.y), active.take(where))
            active.put(rounding, roundings(logits), active.take(where))
        return leads, rounding

    def _pack(self, where: Bool[Tensor, "k m"]) -> tuple[ActiveSet, Batch, Tensor]:
        """The examples asked for, and perhaps some more: ever fewer are asked for in a search."""
        if self._packed is None or self._held is None or not self._is_worth_keeping(self._held, where):
            active, self._held = ActiveSet.of(where), where
            self._packed = active, self.batch.part(active), active.take(self.way)
        return self._packed

    @staticmethod
    def _is_worth_keeping(held: Tensor, where: Tensor) -> bool:
        return bool((held | ~where).all()) and int(where.sum()) >= (1 - _DONE_SHARE) * int(held.sum())


@dataclass(frozen=True)
class Bracket:
    """Steps of a failure and of a success, and the margins there."""

    failed: Float[Tensor, "k m"]
    found: Float[Tensor, "k m"]
    before: Float[Tensor, "k m"]
    after: Float[Tensor, "k m"]

    def narrower(self, here: Tensor, lead: Tensor, where: Tensor) -> Bracket:
        """With the margins ``lead`` at the places ``here``, where there are any."""
        hit, miss = where & (lead < 0), where & ~(lead < 0)
        return Bracket(
            torch.where(miss, here, self.failed),
            torch.where(hit, here, self.found),
            torch.where(miss, lead, self.before),
            torch.where(hit, lead, self.after),
        )

    def halved(self, side: Tensor) -> Bracket:
        """With half of the margin of the end that two places in a row left where it was: side +2 or -2."""
        before = torch.where(side >= 2, self.before / 2, self.before)
        return replace(self, before=before, after=torch.where(side <= -2, self.after / 2, self.after))

    @property
    def zero(self) -> Float[Tensor, "k m"]:
        """Where the secant is 0."""
        return self.failed + (self.found - self.failed) * (self.before / (self.before - self.after))


def between(places: _Places, bracket: Bracket, where: Tensor, *, count: int, beyond: float) -> Bracket:
    """The brackets after a look at ``count`` places of each at most.

    These are a share ``beyond`` further than the zero of the secant, by the Illinois rule: where the path is
    in one linear piece the first of them succeeds, and that is the end. After a place that leaves more than
    half of the bracket comes its middle.
    """
    side = torch.zeros_like(bracket.found)
    halve = torch.zeros_like(where)
    for _ in range(count):
        zero, width = bracket.zero, bracket.found - bracket.failed
        where = where & ~(bracket.found <= zero * (1 + 2 * beyond))
        if not where.any():
            break
        here = zero * (1 + beyond)
        inside = (here > bracket.failed) & (here < bracket.found) & ~halve
        here = torch.where(inside, here, (bracket.failed + bracket.found) / 2)
        lead = places.margins(here, where)
        now = torch.where(lead < 0, 1.0, -1.0).to(side.dtype)
        side = torch.where(now * side > 0, 2 * now, now)
        bracket = bracket.narrower(here, lead, where).halved(side)
        halve = ~halve & (bracket.found - bracket.failed > width / 2)
    return bracket
