"""Margins, and the bookkeeping that drops finished examples from a members-first batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.ensembles import Ensemble
from theory.types import InvalidInput


def margins(logits: Float[Tensor, "K n c"], y: Int[Tensor, "*K n"]) -> Float[Tensor, "K n"]:
    """g_y - max_{k != y} g_k: positive exactly where an example is classified correctly, ties excluded."""
    true = y.expand(logits.shape[:2])[..., None]
    others = logits.scatter(2, true, -torch.inf)
    return logits.gather(2, true)[..., 0] - others.amax(2)


def check_attack(ensemble: Ensemble, x: Tensor, y: Tensor) -> None:
    """Raises: InvalidInput if shapes disagree, a value is not finite, or a label is out of range."""
    if x.ndim != 2 or x.shape[1] != ensemble.inputs:
        raise InvalidInput(f"x has shape {tuple(x.shape)}; the networks take (n, {ensemble.inputs})")
    if y.shape != x.shape[:1]:
        raise InvalidInput(f"y has shape {tuple(y.shape)}; expected ({len(x)},), one label per example")
    if not torch.isfinite(x).all():
        raise InvalidInput(
            f"x[{int((~torch.isfinite(x)).any(1).nonzero()[0])}] holds NaN or infinity; remove it"
        )
    if len(y) and not (0 <= int(y.min()) and int(y.max()) < ensemble.classes):
        raise InvalidInput(f"y spans [{int(y.min())}, {int(y.max())}]; labels lie in [0, {ensemble.classes})")


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
        return values[self.members[:, None], self.rows]

    def put(self, target: Tensor, values: Tensor, where: Bool[Tensor, "k m"]) -> None:
        """Write packed values back into ``target`` where ``where`` holds and the entry is no padding."""
        chosen = where & self.live
        members = self.members[:, None].expand_as(self.rows)[chosen]
        target[members, self.rows[chosen]] = values[chosen]
