"""The fast gradient sign method: one step of given size, and the exact smallest step that succeeds."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from empirical.attacks.active import Batch, attack_correct, check_attack, check_count
from empirical.attacks.geometry import along, clip
from empirical.attacks.losses import cross_entropy_direction
from empirical.attacks.ray import beyond_crossing
from empirical.attacks.search import REACH, smallest_step
from empirical.ensembles import Ensemble
from theory.types import InvalidInput


def loss_gradient_sign(
    ensemble: Ensemble, x: Float[Tensor, "*K n d"], y: Int[Tensor, "*K n"]
) -> Float[Tensor, "K n d"]:
    """Sign of the input gradient of the cross-entropy at the true label; 0 where that is 0 or NaN."""
    return ensemble.logits_and_gradient(x, cross_entropy_direction(y))[1].sign().nan_to_num_(0.0)


def fgs(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    box: tuple[float, float] | None = None,
) -> Float[Tensor, "K n d"]:
    """x + eps * sign(loss gradient), clipped to ``box`` if one is given, whether it succeeds or not.

    The accuracy on these examples is the paper's r_inf(eps) (with its box, [0, 1]).
    Raises: InvalidInput if eps is negative or not finite, or shapes, values, labels or box are bad.
    """
    check_attack(ensemble, x, y, box=box)
    _check_eps(eps)
    return clip(x + eps * loss_gradient_sign(ensemble, x, y), box)


def rfgs(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    share: float = 0.5,
    seed: int = 0,
    box: tuple[float, float] | None = None,
) -> Float[Tensor, "K n d"]:
    """R+FGSM (Tramer et al. 2018): a random sign step of size share * eps, then a gradient sign step.

    The second step has size (1 - share) * eps and follows the gradient at the point after the first one. The
    random signs depend on the seed and the example's place in x alone: they are the same for all members. The
    examples are returned whether they succeed or not.
    Raises: InvalidInput if eps is negative or not finite, share lies outside [0, 1), the seed is negative, or
    shapes, values, labels or box are bad.
    """
    check_attack(ensemble, x, y, box=box)
    _check_eps(eps)
    _check_share(share)
    begin = clip(x + share * eps * _random_signs(x, seed, first=0), box)
    return clip(begin + (1 - share) * eps * loss_gradient_sign(ensemble, begin, y), box)


def minimal_fgs(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    max_step: float = torch.inf,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The smallest fast-gradient-sign step that changes the decision.

    Without a box it is located exactly where :func:`empirical.attacks.ray.crossings` says so: the logits are
    piecewise linear along the ray; success need not be monotone in the step, so a grid or a bisection can
    miss the first one. With a box, whose walls bend the ray, it is an upper bound by a scan and a secant
    search (:func:`empirical.attacks.search.smallest_step`). Misclassified examples are found at step 0;
    at any other step a tie of logits is no success.
    Raises: InvalidInput if max_step is negative or NaN, or shapes, values, labels or box are bad.
    """
    check_attack(ensemble, x, y, box=box)
    _check_max_step(max_step)
    if box is None:
        return beyond_crossing(ensemble, x, y, loss_gradient_sign(ensemble, x, y), max_step=max_step)

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        sign = loss_gradient_sign(batch.nets, batch.start, batch.y)
        unit = batch.boundary(p=torch.inf, box=box)

        def straight(part: Batch, way: Tensor, step: Tensor) -> Tensor:
            return along(part.start, way, step, box)

        return smallest_step(batch, sign, straight, unit=unit, largest=_largest(max_step, box))

    return attack_correct(ensemble, x, y, attack, box=box)


def minimal_rfgs(
    ensemble: Ensemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    share: float = 0.5,
    seed: int = 0,
    first: int = 0,
    max_step: float = torch.inf,
    box: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "K n d"], Bool[Tensor, "K n"]]:
    """The smallest step at which R+FGSM (:func:`rfgs`) changes the decision, by a scan and a secant search.

    The path bends as the gradient after the random step changes with its size: an upper bound
    (:func:`empirical.attacks.search.smallest_step`); where no gradient at x leads to a boundary, of steps up
    to the largest entry of x. Misclassified examples are found at step 0. The random signs are those of
    :func:`rfgs`; where x is a part of the data, ``first`` is the place of its first example there, and the
    signs are those of the whole.
    Raises: InvalidInput if share lies outside [0, 1), max_step is negative or NaN, the seed or ``first`` is
    negative, or shapes, values, labels or box are bad.
    """
    check_attack(ensemble, x, y, box=box)
    _check_share(share)
    _check_max_step(max_step)
    signs = _random_signs(x, seed, first=first)

    def attack(batch: Batch) -> tuple[Tensor, Tensor]:
        unit = batch.boundary(p=torch.inf, box=box)
        unit = torch.where(unit > 0, unit, batch.extent(p=torch.inf) / REACH)

        def bent(part: Batch, way: Tensor, step: Tensor) -> Tensor:
            begin = clip(part.start + share * step[..., None] * way, box)
            sign = loss_gradient_sign(part.nets, begin, part.y)
            return clip(begin + (1 - share) * step[..., None] * sign, box)

        return smallest_step(batch, signs[batch.rows], bent, unit=unit, largest=_largest(max_step, box))

    return attack_correct(ensemble, x, y, attack, box=box)


def _random_signs(x: Tensor, seed: int, *, first: int) -> Tensor:
    """Signs of every example by its place, ``first`` that of x[0]; drawn alike on all devices."""
    check_count("seed", seed, least=0)
    check_count("first", first, least=0)
    bits = np.random.PCG64(seed).advance(first * x.shape[1])  # one draw for each number in [0, 1)
    drawn = np.random.Generator(bits).random(x.shape)
    return torch.as_tensor(np.where(drawn < 0.5, -1.0, 1.0), dtype=x.dtype, device=x.device)


def _largest(max_step: float, box: tuple[float, float] | None) -> float:
    """A step as long as the box moves every feature to its wall."""
    return max_step if box is None else min(max_step, box[1] - box[0])


def _check_eps(eps: float) -> None:
    if not 0 <= eps < torch.inf:
        raise InvalidInput(f"eps is {eps}; the step must be finite and not negative")


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise InvalidInput(f"share is {share}; the random step's share of the whole lies in [0, 1)")


def _check_max_step(max_step: float) -> None:
    if not max_step >= 0:
        raise InvalidInput(f"max_step is {max_step}; it must not be negative")
