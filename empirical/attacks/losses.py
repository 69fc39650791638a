"""Losses that attacks climb, as cotangents: what they ask of the logits' gradients.

All are differences of logits, so that a saturated softmax cannot take the gradient away.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.ensembles import Cotangent

# About the logit margin of a trained classifier, for whose cross-entropy s = 1.
SHARPNESS = 10.0


def cross_entropy_direction(y: Int[Tensor, "*K n"]) -> Cotangent:
    """The direction of the cross-entropy's gradient at the true label.

    That gradient is (1 - p_y) * sum_{k != y} softmax_{k != y}(g) * grad(g_k - g_y). The factor in front is
    left out: it changes no direction and underflows on saturated logits.
    """

    def cotangent(logits: Tensor) -> Tensor:
        true = y.expand(logits.shape[:2])[..., None]
        return logits.scatter(2, true, -torch.inf).softmax(2).scatter_(2, true, -1.0)

    return cotangent


def target_direction(y: Int[Tensor, "*K n"], target: Int[Tensor, "*K n"]) -> Cotangent:
    """The gradient of the lead g_target - g_y of one class."""

    def cotangent(logits: Tensor) -> Tensor:
        shape = logits.shape[:2]
        aim = torch.zeros_like(logits).scatter_(2, target.expand(shape)[..., None], 1.0)
        return aim.scatter_(2, y.expand(shape)[..., None], -1.0)

    return cotangent


def aimed_direction(
    y: Int[Tensor, "*K n"], lead: Float[Tensor, "*K n"], aim: Int[Tensor, "*K n"] | None
) -> Cotangent:
    """The gradient of the lead of the class ``aim``; :func:`lead_direction` where that is -1, or None."""
    smooth = lead_direction(y, lead)
    if aim is None:
        return smooth
    towards, one = target_direction(y, aim.clamp(min=0)), aim[..., None] >= 0
    return lambda logits: torch.where(one, towards(logits), smooth(logits))


def lead_direction(y: Int[Tensor, "*K n"], lead: Float[Tensor, "*K n"]) -> Cotangent:
    """The gradient of the lead of the other classes over the true one, as a smooth maximum.

    log sum_{k != y} exp(s g_k) / s - g_y, with s = SHARPNESS / lead: the clean example's margin sets the
    unit of the logits, so that their scale changes nothing. Smoothness is worth several per cent of distance.
    """
    sharpness = (SHARPNESS / lead)[..., None]

    def cotangent(logits: Tensor) -> Tensor:
        true = y.expand(logits.shape[:2])[..., None]
        others = logits.scatter(2, true, -torch.inf)
        # A softmax written out: over so few entries the library's takes longer than all of this.
        weights = (others - others.amax(2, keepdim=True)).mul_(sharpness).exp_()
        return weights.div_(weights.sum(2, keepdim=True)).scatter_(2, true, -1.0)

    return cotangent
