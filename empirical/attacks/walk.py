"""Where a ray leaves its class in an MLP: exact, by walking through the linear pieces of the network.

Along x + t u every logit is piecewise linear in t. The walk keeps the value and slope of every
pre-activation on the current piece, which ends at the first sign change of a hidden one. The first
layer's sign changes are known up front; each changes the second layer's slopes by a rank-one term, and
deeper slopes are recomputed, so a step costs far less than a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.attacks.active import ActiveSet, margins
from empirical.attacks.crossing import Crossing, least_step, margins_at, step_beyond
from empirical.ensembles import MLPEnsemble

# Examples that are done are dropped from the batch once they make up this share of it.
_DROP_SHARE = 0.5
# A margin of fewer roundings of the logits than this may be another one in a forward pass.
_HIDDEN = 2.0**12


def walk(
    ensemble: MLPEnsemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "K n d"],
    *,
    max_step: float,
    ties: bool = True,
) -> Crossing:
    """The first crossing of every ray, piece by piece; exact up to rounding.

    Without ``ties``, one is passed over unless its step beyond is in another class: by the walk's own logits
    where rounding cannot hide it, by a forward pass elsewhere.
    """
    walk = _Walk.start(ensemble, x, y, direction)
    wrong = margins(walk.values[-1], y) <= 0
    at = torch.full_like(wrong, torch.inf, dtype=x.dtype).masked_fill_(wrong, 0.0)
    end, done = at.clone(), wrong
    least, size = least_step(x, direction), walk.values[-1].abs().amax(2)
    limit = min(max_step, torch.finfo(x.dtype).max)
    while not done.all():
        active = ActiveSet.of(~done)
        walk = walk.pack(active)
        done = ~active.live
        here, piece_end = torch.full_like(walk.t, torch.inf), torch.full_like(walk.t, torch.inf)
        keep_going = done.sum() + active.live.sum() * _DROP_SHARE
        while done.sum() < keep_going:
            leaving, layer, units = walk.next_sign_change()
            crossing = walk.next_tie()
            # A tie may only be touched, where the piece ends; whether one goes on is seen beyond that.
            before = crossing <= leaving if ties else crossing < leaving
            crossed = before & crossing.isfinite() & ~done
            torch.where(crossed, walk.t + crossing, here, out=here)
            after = walk.t + leaving
            torch.where(crossed, after, piece_end, out=piece_end)
            done = done | crossed | ~(after <= limit)  # NaN where logits overflow
            walk.advance(leaving, layer, units, ~done)
        crossed = here <= limit
        places = (walk.member[:, None].expand_as(crossed)[crossed], walk.row[crossed])
        at[places], end[places] = here[crossed], piece_end[crossed]
        if not ties:
            step = step_beyond(at, end, least, max_step=max_step)
            rays = (walk.member[:, None], walk.row)
            doubtful = crossed & ~walk.has_clearly_left(step[rays], size[rays])
            if doubtful.any():
                asked = torch.zeros_like(wrong)
                asked[rays[0].expand_as(doubtful)[doubtful], walk.row[doubtful]] = True
                kept = asked & (margins_at(ensemble, x, y, direction, step, asked) >= 0)
                at.masked_fill_(kept, torch.inf)
                going = doubtful & kept[rays] & (piece_end <= limit)
                walk.advance(*walk.next_sign_change(), going)
                done = done & ~going
    beyond = step_beyond(at, end, least, max_step=max_step)
    return Crossing(at, beyond.where(at.isfinite() & ~wrong, at), torch.ones_like(wrong))


@dataclass
class _Walk:
    """The current piece of every ray: k members of m rays each. Layer 0 is the first hidden layer."""

    member: Tensor  # (k,) place in the caller's arrays
    row: Tensor  # (k, m) place in the caller's arrays
    y: Tensor  # (k, m)
    t: Tensor  # (k, m)
    weights: list[Tensor]  # per layer after the second, (k, in, out)
    # Sign changes of layer 0 on all rays, flat: those of a ray in order of time, the last at inf.
    first_times: Tensor
    first_slopes: Tensor  # change of the unit's output slope at that time
    first_units: Tensor  # the unit's place among those of all members, and row of ``columns``
    columns: Tensor  # of the weights of the second layer, flat; without rows if there is none
    upcoming: Tensor  # (k, m) the first one ahead of us
    # Of the layers after the first, the logits last. A hidden unit's value is |pre-activation|, its side is
    # +1 where it is active and -1 where not, and its slope is that of the value.
    values: list[Tensor]
    slopes: list[Tensor]
    sides: list[Tensor]

    @staticmethod
    def start(ensemble: MLPEnsemble, x: Tensor, y: Tensor, direction: Tensor) -> _Walk:
        k, m = direction.shape[:2]
        values = ensemble.preactivations(x.expand(k, *x.shape))
        first = ensemble.layers[0]
        slopes = [first.forward(direction, torch.zeros_like(ensemble.biases[0]))]
        gates = [value > 0 for value in values[:-1]]
        for gate, weight in zip(gates, ensemble.weights[1:], strict=True):
            slopes.append(torch.bmm(slopes[-1] * gate, weight.mT))
        if ensemble.is_binary:
            values[-1] = torch.cat([torch.zeros_like(values[-1]), values[-1]], dim=2)
            slopes[-1] = torch.cat([torch.zeros_like(slopes[-1]), slopes[-1]], dim=2)
        end = torch.full((k, m, 1), torch.inf, dtype=x.dtype, device=x.device)
        times, units, changes = end, torch.zeros_like(end, dtype=torch.int64), torch.zeros_like(end)
        if gates:
            approaching = ((slopes[0] < 0) == gates[0]) & (slopes[0] != 0)
            change_times = (-values[0] / slopes[0]).masked_fill_(~approaching, torch.inf).clamp_(min=0.0)
            change_times = torch.cat([change_times, end], dim=2)
            times, units = change_times.sort(dim=2)
            # |slope| either way: a unit that turns on has positive slope, one that turns off loses it.
            changes = torch.cat([slopes[0].abs(), torch.zeros_like(end)], dim=2).gather(2, units)
            width = gates[0].shape[2]
            units = units.clamp_(max=width - 1) + width * torch.arange(k, device=x.device)[:, None, None]
        sides = [torch.where(gate, 1.0, -1.0).to(x.dtype) for gate in gates[1:]]
        for i, side in enumerate(sides, start=1):
            values[i] = (values[i] * side).clamp_(min=_least(x.dtype))
            slopes[i] = slopes[i] * side
        columns, *weights = _without_first(ensemble) or [slopes[0].new_zeros(k, 0, 0)]
        return _Walk(
            member=torch.arange(k, device=x.device),
            row=torch.arange(m, device=x.device).expand(k, m),
            y=y.expand(k, m),
            t=torch.zeros_like(times[..., 0]),
            weights=weights,
            first_times=times.flatten(),
            first_slopes=changes.flatten(),
            first_units=units.flatten(),
            columns=columns.flatten(0, 1),
            upcoming=torch.arange(0, times.numel(), times.shape[2], device=x.device).view(k, m),
            values=values[1:] or values,
            slopes=slopes[1:] or slopes,
            sides=sides,
        )

    def pack(self, active: ActiveSet) -> _Walk:
        """The walk of the rays that are not done."""
        take = active.take
        return _Walk(
            member=self.member[active.members],
            row=take(self.row),
            y=take(self.y),
            t=take(self.t),
            weights=[weight[active.members] for weight in self.weights],
            first_times=self.first_times,
            first_slopes=self.first_slopes,
            first_units=self.first_units,
            columns=self.columns,
            upcoming=take(self.upcoming),
            values=[take(value) for value in self.values],
            slopes=[take(slope) for slope in self.slopes],
            sides=[take(side) for side in self.sides],
        )

    def next_sign_change(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Time until the first hidden sign change, its layer, and the first unit to change in each layer."""
        times = [self.first_times.take(self.upcoming) - self.t]
        units = [self.first_units.take(self.upcoming)]
        for value, slope in zip(self.values[:-1], self.slopes[:-1], strict=True):
            fastest = (slope / value).min(2)
            times.append((-1 / fastest.values).masked_fill_(fastest.values >= 0, torch.inf))
            units.append(fastest.indices)
        soonest = torch.stack(times).min(0)
        return soonest.values.clamp_(min=0.0), soonest.indices, units

    def next_tie(self) -> Tensor:
        """Time until another logit reaches the true one on this piece; inf if none does."""
        true = self.y[..., None]
        margin = self.values[-1].gather(2, true) - self.values[-1]
        closing = self.slopes[-1] - self.slopes[-1].gather(2, true)
        time = (margin / closing).masked_fill_(closing <= 0, torch.inf)
        return time.amin(2).clamp_(min=0.0)

    def has_clearly_left(self, t: Tensor, size: Tensor) -> Tensor:
        """Whether the class has changed at the times t on this piece, of logits that began at this size."""
        value, slope = self.values[-1], self.slopes[-1]
        size = size.maximum((value.abs() + slope.abs() * t[..., None]).amax(2))
        lead = margins(value + slope * (t - self.t)[..., None], self.y)
        return lead < -_HIDDEN * torch.finfo(t.dtype).eps * size

    def advance(self, time: Tensor, layer: Tensor, units: list[Tensor], moving: Tensor) -> None:
        """Go to the end of the piece and flip the unit whose pre-activation is zero there."""
        flips = [(layer == i) & moving for i in range(len(units))]
        time = time.masked_fill(~moving, 0.0)
        self.t = self.t + time
        for value, slope in zip(self.values, self.slopes, strict=True):
            value.addcmul_(slope, time[..., None])
        for i, side in enumerate(self.sides):
            self.values[i].clamp_(min=_least(self.t.dtype))
            at, sign = units[i + 1][..., None], torch.where(flips[i + 1], -1.0, 1.0)[..., None].to(side)
            for oriented in (side, self.slopes[i]):
                oriented.scatter_reduce_(2, at, sign, "prod")
        if len(self.columns):
            change = self.first_slopes.take(self.upcoming) * flips[0]
            columns = self.columns.index_select(0, units[0].flatten()).view_as(self.slopes[0])
            if self.sides:
                columns *= self.sides[0]
            self.slopes[0].addcmul_(columns, change[..., None])
            self.upcoming = self.upcoming + flips[0]
            for i, weight in enumerate(self.weights):
                active = torch.ops.aten.threshold_backward(self.slopes[i], self.sides[i], 0)  # 0 where not
                self.slopes[i + 1] = torch.bmm(active, weight)
                if i + 1 < len(self.sides):
                    self.slopes[i + 1] *= self.sides[i + 1]


def _least(dtype: torch.dtype) -> float:
    """The least |pre-activation| of a hidden unit: a unit at zero stays on its side until it changes it."""
    return torch.finfo(dtype).tiny


def _without_first(ensemble: MLPEnsemble) -> list[Tensor]:
    """Transposed weights (K, in, out) of the layers after the first, a single score widened to (0, f)."""
    weights = [w.mT.contiguous() for w in ensemble.weights[1:]]
    if weights and ensemble.is_binary:
        weights[-1] = torch.cat([torch.zeros_like(weights[-1]), weights[-1]], dim=2)
    return weights
