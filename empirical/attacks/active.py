"""Margins, and the bookkeeping that drops finished examples from a members-first batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.geometry import feasible, norm
from empirical.attacks.losses import aimed_direction
from empirical.ensembles import Cotangent, Ensemble
from theory.types import InvalidInput


def margins(logits: Float[Tensor, "K n c"], y: Int[Tensor, "*K n"]) -> Float[Tensor, "K n"]:
    """g_y - max_{k != y} g_k: positive exactly where an example is classified correctly, ties excluded."""
    true = y.expand(logits.shape[:2])[..., None]
    others = logits.scatter(2, true, -torch.inf)
    return logits.gather(2, true)[..., 0] - others.amax(2)


def sure_margins(logits: Float[Tensor, "K n c"], y: Int[Tensor, "*K n"]) -> Float[Tensor, "K n"]:
    """The margins and some roundings of the logits: where negative, so is the margin in every product."""
    return margins(logits, y) + roundings(logits)


def roundings(logits: Float[Tensor, "K n c"]) -> Float[Tensor, "K n"]:
    """By how much products of another shape change a margin at most, if no sum of theirs is much larger."""
    return _ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().amax(2)


def check_attack(
    ensemble: Ensemble,
    x: Tensor,
    y: Tensor,
    *,
    box: tuple[float, float] | None = None,
    labels: str = "y",
) -> None:
    """Raises: InvalidInput if shapes, types or devices disagree, a value is not finite or outside the box, a
    label is out of range, or the box is empty; ``labels`` is what the caller calls ``y``.
    """
    if isinstance(ensemble, torch.nn.Module):
        raise InvalidInput("ensemble is a torch.nn.Module; wrap it: from_modules([module], shape=...)")
    for name, value in (("x", x), (labels, y)):
        if not isinstance(value, Tensor):
            raise InvalidInput(
                f"{name} is of type {type(value).__name__}; pass a tensor, as torch.as_tensor gives"
            )
        if value.device != ensemble.weights[0].device:
            raise InvalidInput(
                f"{name} is on {value.device}, the networks on {ensemble.weights[0].device}; move one of them"
            )
    if x.requires_grad:
        raise InvalidInput("x requires gradients; pass x.detach()")
    if y.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(f"{labels} has dtype {y.dtype}; labels are integers: pass {labels}.long()")
    if x.ndim != 2 or x.shape[1] != ensemble.inputs:
        raise InvalidInput(f"x has shape {tuple(x.shape)}; the networks take (n, {ensemble.inputs})")
    if y.shape != x.shape[:1]:
        raise InvalidInput(
            f"{labels} has shape {tuple(y.shape)}; expected ({len(x)},), one label per example"
        )
    if x.numel() and not torch.stack(x.aminmax()).isfinite().all():  # one pass: NaN is both ends
        raise InvalidInput(
            f"x[{int((~torch.isfinite(x)).any(1).nonzero()[0])}] holds NaN or infinity; remove it"
        )
    if len(y) and not (0 <= int(y.min()) and int(y.max()) < ensemble.classes):
        raise InvalidInput(
            f"{labels} spans [{int(y.min())}, {int(y.max())}]; labels lie in [0, {ensemble.classes})"
        )
    if x.dtype != ensemble.weights[0].dtype:
        raise InvalidInput(f"x is {x.dtype}, the networks {ensemble.weights[0].dtype}; convert one of them")
    if box is None:
        return
    if not -torch.inf < box[0] < box[1] < torch.inf:
        raise InvalidInput(f"box is {box}; give (low, high), finite, low < high")
    low, high = torch.tensor(box, dtype=x.dtype).tolist()  # as far as x can be clamped to it
    if x.numel() and not low <= float(x.min()) <= float(x.max()) <= high:
        raise InvalidInput(f"x spans [{float(x.min())}, {float(x.max())}]; it must lie in the box {box}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Raises: InvalidInput unless ``value`` is a whole number, ``least`` or more."""
    if not isinstance(value, Integral) or value < least:
        raise InvalidInput(f"{name} is {value}; give a whole number, at least {least}")


# Products of another shape give logits that differ by fewer roundings of the largest than this.
_ROUNDINGS = 32.0
# A linearised boundary further away than so many times the size of x says that the margin is flat.
_FAR = 16.0
# Entries of an example from which on its rows are copied as a whole.
_WIDE = 128


def _taken(values: Tensor, members: Int[Tensor, " k"], rows: Int[Tensor, "k m"]) -> Tensor:
    """The (k, m, ...) part of (K, n, ...) values; wide rows as a whole, which takes a fifth of the time."""
    if values.ndim < 3 or values[0, :1].numel() < _WIDE:
        return values[members[:, None], rows]
    if values.stride(0) == 0:  # one batch for all members
        return values[0].index_select(0, rows.flatten()).unflatten(0, rows.shape)
    places = members[:, None] * values.shape[1] + rows
    return values.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, rows.shape)


@dataclass(frozen=True)
class ActiveSet:
    """The unfinished examples of a (K, n) batch, packed to (K', m).

    Members without unfinished examples are dropped; the others are padded with finished examples to the
    longest one's length m, and ``live`` is False on the padding.
    """

    members: Int[Tensor, " k"]
    rows: Int[Tensor, "k m"]
    live: Bool[Tensor, "k m"]

    @staticmethod
    def of(unfinished: Bool[Tensor, "K n"]) -> ActiveSet:
        """Pack the entries where ``unfinished`` is True."""
        members = unfinished.any(1).nonzero().flatten()
        count = unfinished[members].sum(1)
        longest = int(count.max()) if len(members) else 0
        order = unfinished[members].to(torch.int8).argsort(dim=1, descending=True, stable=True)
        live = torch.arange(longest, device=count.device) < count[:, None]
        return ActiveSet(members, order[:, :longest], live)

    def take(self, values: Tensor) -> Tensor:
        """The packed (K', m, ...) part of (K, n, ...) values."""
        return _taken(values, self.members, self.rows)

    def part(self, inner: ActiveSet) -> ActiveSet:
        """The entries that ``inner``, which indexes this set's packed values, still holds."""
        return ActiveSet(
            self.members[inner.members], inner.take(self.rows), inner.live & inner.take(self.live)
        )

    def put(self, target: Tensor, values: Tensor, where: Bool[Tensor, "k m"]) -> None:
        """Write packed values back into ``target`` where ``where`` holds and the entry is no padding."""
        chosen = where & self.live
        members = self.members[:, None].expand_as(self.rows)[chosen]
        target[members, self.rows[chosen]] = values[chosen]


@dataclass(frozen=True)
class Batch:
    """Examples under attack, packed: those of member k's network are row k; all classified correctly.

    ``members`` and ``rows`` are their places in the caller's arrays, ``lead`` their margins at ``start``.
    ``aim`` is the class that attacks seek, -1 where any will do; None if any will do for all. Padding repeats
    other examples.
    """

    nets: Ensemble
    start: Float[Tensor, "k m d"]
    y: Int[Tensor, "k m"]
    lead: Float[Tensor, "k m"]
    members: Int[Tensor, " k"]
    rows: Int[Tensor, "k m"]
    aim: Int[Tensor, "k m"] | None = None

    def of(self, values: Tensor) -> Tensor:
        """The caller's (K, n, ...) values for these examples."""
        return values[self.members[:, None], self.rows]

    def part(self, active: ActiveSet) -> Batch:
        """The active examples only."""
        take = active.take
        nets = self.nets if len(active.members) == len(self.rows) else self.nets.select(active.members)
        members = self.members[active.members]
        start, aim = nets.stored(take(self.start)), None if self.aim is None else take(self.aim)
        return Batch(nets, start, take(self.y), take(self.lead), members, take(self.rows), aim)

    @property
    def loss(self) -> Cotangent:
        """What the attacks climb: the smoothed lead of the other classes, or that of the class aimed at."""
        return aimed_direction(self.y, self.lead, self.aim)

    def gap(self, logits: Float[Tensor, "k m c"]) -> Float[Tensor, "k m"]:
        """What the attacks have to close: the margin, or the lead over the class aimed at."""
        margin = margins(logits, self.y)
        if self.aim is None:
            return margin
        true, aimed = (logits.gather(2, k[..., None])[..., 0] for k in (self.y, self.aim.clamp(min=0)))
        return torch.where(self.aim >= 0, true - aimed, margin)

    def success(self, points: Float[Tensor, "k m d"]) -> Bool[Tensor, "k m"]:
        """Where the class has changed, ties excluded."""
        return margins(self.nets.logits(points), self.y) < 0

    def boundary(self, *, p: float, box: tuple[float, float] | None) -> Float[Tensor, "k m"]:
        """The linearised l_p distance to the boundary, 0 where no gradient leads there."""
        logits, gradient = self.nets.logits_and_gradient(self.start, self.loss)
        size = norm(feasible(gradient, self.start, box), p=2.0 if p == 2 else 1.0)
        gap = self.lead if self.aim is None else self.gap(logits)
        return torch.where(size > 0, gap / size, 0.0)

    def extent(self, *, p: float) -> Float[Tensor, "k m"]:
        """The l_p length of the examples: a scale where no gradient gives one. That of 0 is taken as 1."""
        length = norm(self.start, p=p)
        return torch.where(length > 0, length, 1.0)


def attack_correct(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    attack: Callable[[Batch], tuple[Tensor, Tensor]],
    *,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """Attack what is classified correctly; the rest is found where it is.

    ``attack``, which keeps to the ``box``, returns points and where they succeed; elsewhere the clean example
    stays.
    """
    x_adv = x.expand(ensemble.members, *x.shape).clone()
    lead = margins(ensemble.logits(x), y)
    found = lead <= 0
    active = ActiveSet.of(~found)
    if len(active.members):
        rows = torch.arange(len(x), device=x.device).expand_as(found)
        lead = lead.masked_fill(found, 1.0)  # of padding, if anything
        members = torch.arange(ensemble.members, device=x.device)
        everything = Batch(ensemble, x.expand_as(x_adv), y.expand_as(found), lead, members, rows)
        points, success = attack(_aimed(everything.part(active), box))
        active.put(x_adv, points, success)
        active.put(found, success, success)
    return x_adv, found


def _aimed(batch: Batch, box: tuple[float, float] | None) -> Batch:
    """The batch with an aim where the margin is flat: the class whose linearised boundary is nearest.

    A pruned network may have classes whose scores are constant around x. The margin over them has no gradient
    although the boundary to another class is near. In a box it may have one that only leads out of it.
    """
    _, gradient = batch.nets.logits_and_gradient(batch.start, batch.loss)
    flat = batch.lead > _FAR * norm(gradient, p=2) * norm(batch.start, p=2)
    if box is not None:
        flat |= (feasible(gradient, batch.start, box) == 0).all(2)
    if not flat.any():
        return batch
    active = ActiveSet.of(flat)
    part = batch.part(active)
    logits, jacobian = part.nets.logits_and_jacobian(part.start)
    true = part.y[..., None]
    climb = jacobian - jacobian.gather(2, true[..., None].expand(*true.shape, jacobian.shape[3]))
    slope = norm(feasible(climb, part.start[:, :, None], box), p=2)
    distance = torch.where(slope > 0, (logits.gather(2, true) - logits) / slope, torch.inf)
    nearest = distance.scatter(2, true, torch.inf).min(2)
    aim = torch.full_like(batch.y, -1)
    active.put(aim, nearest.indices, nearest.values.isfinite())
    return replace(batch, aim=aim)


@dataclass
class Closest:
    """The closest successful point of every example so far; distance inf where there is none."""

    points: Float[Tensor, "k m d"]
    distance: Float[Tensor, "k m"]

    @staticmethod
    def none(start: Float[Tensor, "k m d"]) -> Closest:
        """Nothing found yet."""
        return Closest(start.clone(), torch.full_like(start[..., 0], torch.inf))

    def offer(
        self, points: Float[Tensor, "k m d"], distance: Float[Tensor, "k m"], success: Bool[Tensor, "k m"]
    ) -> Bool[Tensor, "k m"]:
        """Keep the successful points that are closer; says which were."""
        closer = success & (distance < self.distance)
        self.points[closer] = points[closer]
        self.distance = torch.where(closer, distance, self.distance)
        return closer

    @property
    def found(self) -> Bool[Tensor, "k m"]:
        """Which examples have a successful point."""
        return self.distance.isfinite()
