"""Dynamic network surgery: masks that change while the network is trained, so that a cut can be undone.

Guo, Yao and Chen, "Dynamic network surgery for efficient DNNs" (2016). A layer's threshold is
t = mean(|w|) + rate * std(|w|) over its weights at the start, zeros left out. Weights below 0.9 t are cut,
those above 1.1 t spliced in again, those between stay as they are. The forward pass uses the masked weights;
the gradients with respect to these move every weight, a cut one too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theory.types import InvalidInput

CUT, SPLICE = 0.9, 1.1


@dataclass(frozen=True)
class Surgery:
    """``rates`` has one entry for all layers, or one per layer; None spares a layer.

    Instead of rates, ``share``: that of every layer's weights which lies below its cutting threshold, 0.9 t,
    at the start, zeros among them: of a pruned network it is to be more than its sparsity. At step t the
    masks of a member are updated with probability (1 + decay * t)^-power, all layers at once.
    Raises: InvalidInput for no rates, one that is not finite, rates and a share, a share outside [0, 1), or a
    negative decay or power.
    """

    rates: tuple[float | None, ...] = ()
    share: float | None = None
    decay: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        known = [rate for rate in self.rates if rate is not None]
        if self.share is None and not (known and all(math.isfinite(rate) for rate in known)):
            raise InvalidInput(f"rates is {list(self.rates)}; give finite ones: one in all, or one per layer")
        if self.share is not None and (self.rates or not 0 <= self.share < 1):
            raise InvalidInput(f"share is {self.share}; it lies in [0, 1), and there are no rates beside it")
        for name in ("decay", "power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be finite and not negative")

    def probability(self, step: int) -> float:
        """Of an update at this step."""
        return (1 + self.decay * step) ** -self.power


def thresholds(weights: Sequence[Float[Tensor, "K *_"]], surgery: Surgery) -> list[Float[Tensor, "K *_"]]:
    """t of every layer and member, shaped to broadcast with the weights; NaN where a layer is spared.

    Raises: InvalidInput if there are neither one rate nor as many as layers, or a share at which the
    threshold is 0: more of a layer's weights are 0 already, and whatever moves would be spliced in.
    """
    if surgery.share is not None:
        return [_threshold_of(weight, surgery.share) for weight in weights]
    rates = surgery.rates * len(weights) if len(surgery.rates) == 1 else surgery.rates
    if len(rates) != len(weights):
        raise InvalidInput(f"rates has {len(rates)} entries; the networks have {len(weights)} layers")
    found = []
    for weight, rate in zip(weights, rates, strict=True):
        size = weight.abs().flatten(1)
        count = (size > 0).sum(1).clamp(min=1)
        mean = size.sum(1) / count
        spread = (size.square().sum(1) / count - mean.square()).clamp(min=0).sqrt()
        limit = (mean + (math.nan if rate is None else rate) * spread).clamp(min=0)
        found.append(limit.view(-1, *[1] * (weight.ndim - 1)))
    return found


def _threshold_of(weight: Float[Tensor, "K *_"], share: float) -> Float[Tensor, "K *_"]:
    """The t below whose cutting threshold this share of every member's weights lies, one weight at least not.

    In float64, and rounded so that CUT times it is no larger than the smallest weight that is to stay:
    in float32 it would exceed that of one layer in fifty.
    """
    size = weight.abs().flatten(1)
    least = size.kthvalue(1 + min(round(share * size.shape[1]), size.shape[1] - 1), dim=1).values.double()
    if (least == 0).any():
        sparsity = float((size == 0).double().mean(1).max())
        raise InvalidInput(
            f"share is {share}, but {sparsity:.4g} of a layer's weights are 0 already, which surgery would "
            "undo; give a larger share, or start from the dense network"
        )
    limit = least / CUT
    limit = torch.where(CUT * limit > least, limit.nextafter(torch.zeros_like(limit)), limit)
    return limit.view(-1, *[1] * (weight.ndim - 1))


def operate(
    weights: Sequence[Float[Tensor, "K *_"]],
    masks: Sequence[Float[Tensor, "K *_"]],
    limits: Sequence[Float[Tensor, "K *_"]],
    members: Bool[Tensor, " K"],
) -> None:
    """Cut and splice the weights of the members marked; ``masks`` (0 or 1) change in place."""
    for weight, mask, limit in zip(weights, masks, limits, strict=True):
        size, updated = weight.abs(), members.view_as(limit)
        cut, splice = ((factor * limit).to(size) for factor in (CUT, SPLICE))
        mask.masked_fill_(updated & (size < cut), 0.0)
        mask.masked_fill_(updated & (size > splice), 1.0)
