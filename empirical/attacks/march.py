"""Where a ray leaves its class in a piecewise-linear module: exact, by bands around segments of the ray.

On a segment of the ray each logit lies in a band around a line (:mod:`empirical.ensembles.segments`), thin
where few units switch. The part of the segment on which the bands rule a crossing out is passed; a crossing
is found where the bands pin it down to the rounding; else the next segment is shorter. A segment that is
passed is followed by one twice as long, so open country costs few bands, and near the crossing lengths fall
as in the secant method, because the thickness of a band falls faster than the length of its segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.crossing import (
    OVERSHOOT,
    ROUNDINGS,
    Crossing,
    least_step,
    scales_along,
    step_beyond,
)
from empirical.ensembles import ModuleEnsemble
from empirical.ensembles.segments import scores_on_segments

# The first segment, as a share of the size of x or of ``max_step``.
_FIRST = 2.0**-6


def march(
    ensemble: ModuleEnsemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    known: Crossing,
    *,
    max_step: float,
    bands: int,
) -> tuple[Crossing, Float[Tensor, "K n"]]:
    """``known``, with the first crossing of every ray that at most ``bands`` bands settle.

    Also how far every ray is proven to keep its class. A ray that is not settled is at inf and not exact; so
    is one on which logits overflow. Raises: NotPiecewiseLinear as ``scores_on_segments``.
    """
    found = Crossing(known.at.clone(), known.beyond.clone(), known.exact.clone())
    proven = torch.zeros_like(found.at)
    for k in range(ensemble.members):
        one = Crossing(found.at[k], found.beyond[k], found.exact[k])
        _march_member(ensemble, k, x, y, direction[k], one, proven[k], max_step=max_step, bands=bands)
    return found, proven


def _march_member(
    ensemble: ModuleEnsemble,
    member: int,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    u: Float[Tensor, "n d"],
    found: Crossing,
    proven: Float[Tensor, " n"],
    *,
    max_step: float,
    bands: int,
) -> None:
    """Write what is found of one member's rays into ``found`` and ``proven``, one entry per ray."""
    least, (rounding, unit, limit) = least_step(x, u), scales_along(x, u)
    limit, length = limit.clamp(max=max_step), _FIRST * unit.clamp(max=8 * max_step)
    found.exact.logical_or_(~u.any(1))
    overflown = torch.zeros_like(found.exact)
    for _ in range(bands):
        rows = (~found.exact & ~overflown).nonzero()[:, 0]
        if not len(rows):
            break
        ends = proven[rows], proven[rows] + length[rows]
        segment = _Bands.around(ensemble, member, x[rows], y[rows], u[rows], *ends)
        overflown[rows] = segment.overflown
        error = ROUNDINGS * torch.finfo(x.dtype).eps * segment.end + rounding[rows]
        room = OVERSHOOT * segment.start + least[rows]
        crossed = segment.shows_crossing(error, room)
        proven[rows], length[rows] = segment.next(error, room)
        here = segment.first.masked_fill(~crossed | (segment.first > max_step), torch.inf)
        found.at[rows] = here
        after = step_beyond(segment.last, segment.end, least[rows], max_step=max_step)
        found.beyond[rows] = after.where(here.isfinite(), here)
        found.exact[rows] = crossed | (proven[rows] > limit[rows])


@dataclass(frozen=True)
class _Bands:
    """The margins on one segment of each of m rays: a crossing is ruled out up to ``first``, and a
    crossing is certain up to ``last``; inf where there is no such time on the segment. Bands that have
    ``overflown`` rule out none."""

    start: Float[Tensor, " m"]
    end: Float[Tensor, " m"]
    first: Float[Tensor, " m"]
    last: Float[Tensor, " m"]
    overflown: Bool[Tensor, " m"]

    @property
    def length(self) -> Float[Tensor, " m"]:
        """How long the segments are."""
        return self.end - self.start

    def shows_crossing(self, error: Tensor, room: Tensor) -> Bool[Tensor, " m"]:
        """Whether the first crossing is known to ``error``, and the segment goes on beyond it by ``room``.

        Less than that is enough on a segment as short as a few times ``room``.
        """
        known = (self.last - self.first <= error) & (self.last < self.end)
        return known & ((self.end - self.last >= room) | (self.length <= 4 * room))

    def next(self, error: Tensor, room: Tensor) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Up to where no crossing is possible, and how long the segment from there should be.

        A segment of length ``error`` that the bands cannot decide on is passed over.
        """
        passed, sliver = self.first >= self.end, self.length <= error
        # Where a crossing is certain, twice the stretch in doubt; never less than what shows it.
        doubt = torch.minimum(2 * (self.last - self.first), self.length / 2)
        shorter = doubt.maximum(torch.minimum(4 * room, self.length / 2))
        length = torch.where(passed, 2 * self.length, torch.where(sliver, self.length, shorter))
        return torch.where(passed | sliver, self.end, self.first), length

    @staticmethod
    def around(
        ensemble: ModuleEnsemble, member: int, x: Tensor, y: Tensor, u: Tensor, start: Tensor, end: Tensor
    ) -> _Bands:
        """The bands between the times ``start`` and ``end``."""
        true = y[:, None]
        *line, radius = scores_on_segments(ensemble, member, x + start[:, None] * u, x + end[:, None] * u)
        m0, m1 = ((scores.gather(1, true) - scores).scatter_(1, true, torch.inf) for scores in line)
        radius = (radius + radius.gather(1, true)).scatter_(1, true, 0.0)
        overflown = ~torch.stack(line).isfinite().all(2).all(0)
        first, last = (_first_zero(m0 - side, m1 - side) for side in (radius, -radius))
        first, last = (torch.lerp(start, end, s).where(s.isfinite(), s) for s in (first, last))
        first, last = first.where(~overflown, start), last.masked_fill(overflown, torch.inf)
        return _Bands(start, end, first, last, overflown)


def _first_zero(start: Float[Tensor, "m c"], end: Float[Tensor, "m c"]) -> Float[Tensor, " m"]:
    """The first place in [0, 1] at which one of c lines is not positive; inf if all are."""
    place = torch.where(end <= 0, start / (start - end), torch.inf)
    place = torch.where(start <= 0, 0.0, place)
    return place.where(start.isfinite(), torch.inf).amin(1)
