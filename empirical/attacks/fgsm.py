"""The fast gradient sign method: one step of given size, and the exact smallest step that succeeds."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import check_attack
from empirical.attacks.ray import beyond_crossing
from empirical.ensembles import Ensemble
from theory.types import InvalidInput


def loss_gradient_sign(
    ensemble: Ensemble, x: Float[Tensor, "n d"], y: Int[Tensor, " n"]
) -> Float[Tensor, "K n d"]:
    """Sign of the input gradient of the cross-entropy at the true label; 0 where the gradient is 0.

    The gradient is (1 - p_y) * sum_{k != y} softmax_{k != y}(g) * grad(g_k - g_y). The factor in front is
    left out: it does not change the sign and underflows on saturated logits.
    """

    def cotangent(logits: Tensor) -> Tensor:
        true = y.expand(logits.shape[:2])[..., None]
        return logits.scatter(2, true, -torch.inf).softmax(2).scatter(2, true, -1.0)

    return ensemble.logits_and_gradient(x, cotangent)[1].sign()


def fgs(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    box: tuple[float, float] | None = None,
) -> Float[Tensor, "K n d"]:
    """x + eps * sign(loss gradient), clipped to ``box`` if one is given.

    The accuracy on these examples is the paper's r_inf(eps) (with its box, [0, 1]).
    Raises: InvalidInput if eps is negative or not finite, or shapes, values or labels are bad.
    """
    check_attack(ensemble, x, y)
    if not 0 <= eps < torch.inf:
        raise InvalidInput(f"eps is {eps}; the step must be finite and not negative")
    moved = x + eps * loss_gradient_sign(ensemble, x, y)
    return moved if box is None else moved.clamp(*box)


def minimal_fgs(
    ensemble: Ensemble, x: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, max_step: float = torch.inf
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The smallest fast-gradient-sign step that changes the decision, located exactly.

    The logits are piecewise linear along the ray, so the first crossing is computed piece by piece
    (:func:`empirical.attacks.ray.first_crossing`); success need not be monotone in the step, so a grid or
    a bisection can miss it. Misclassified examples are found at step 0.
    Raises: InvalidInput if shapes, values or labels are bad.
    """
    check_attack(ensemble, x, y)
    return beyond_crossing(ensemble, x, y, loss_gradient_sign(ensemble, x, y), max_step=max_step)
