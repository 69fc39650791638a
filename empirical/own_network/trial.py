"""What a few examples tell of a network of the user's own before work: does it fit, can it be attacked?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from empirical.datasets import Examples
from empirical.ensembles import Ensemble
from empirical.own_network.loading import Network
from empirical.own_network.preparation import first_scores
from theory.types import InvalidInput, first_line

# Examples that are tried, and by which share of the largest score rounding may change one, of the same batch
# and of another, where parts in half precision are rounded otherwise.
_TRIED, _ROUNDING, _ROUNDING_ALONE = 8, 1e-6, 1e-3
# Examples from which on accuracy is compared with that of guessing.
_ENOUGH = 20


def guesses(network: Network, data: Examples) -> str | None:
    """What to look at if the network is right at its first examples no more often than by chance, else None.

    By chance: up to a standard deviation above what a class drawn at random gets right.
    """
    scores = first_scores(network, data)
    if scores is None or len(scores) < _ENOUGH or data.y.max() >= max(2, scores.shape[1]):
        return None  # what measures it tells of labels that it has no score for
    found = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).long()
    right, n = int((found.cpu().numpy() == data.y[: len(scores)]).sum()), len(scores)
    chance = 1 / max(2, scores.shape[1])
    if right > n * chance + math.sqrt(n * chance * (1 - chance)):
        return None
    return (
        f"{network.name} is right at {right} of the first {n} examples, as by chance; their features range "
        f"from {data.x.min():.3g} to {data.x.max():.3g}: store them scaled as in its training, and with its "
        "order of classes"
    )


def check_attackable(name: str, ensemble: Ensemble, x: Float[Tensor, "n d"]) -> None:
    """Raise InvalidInput unless scores depend on one example alone, always in the same way, with gradients.

    Attacks look for the smallest change of an example that changes a decision: they find none, or one that is
    too large, where noise or the other examples decide, or where no gradient leads to it.
    """
    x = x[:_TRIED]
    x = torch.cat([x, torch.zeros_like(x[:1])]) if len(x) == 1 else x
    try:
        scores = ensemble.logits(x)
        again, gradient = ensemble.logits_and_gradient(x, _uneven)
        alone = torch.cat([ensemble.logits(example) for example in x.split(1)], dim=1)
    except InvalidInput:
        raise
    except Exception as error:  # whatever the user's module raises
        raise InvalidInput(
            f"network {name} cannot be attacked ({first_line(error)}); its forward must compute the scores "
            "of any number of examples by differentiable operations of PyTorch, in its weights' precision; "
            "export it after module.eval()"
        ) from error
    largest = float(scores.abs().nan_to_num(posinf=0.0).max())
    if _apart(scores, again) > _ROUNDING * largest:
        raise InvalidInput(
            f"network {name} gives the same examples other scores every time; take noise and dropout out of "
            "its forward, or export it after module.eval()"
        )
    if not gradient.any() and _apart(scores, scores[:, :1].expand_as(scores)) > _ROUNDING * largest:
        raise InvalidInput(
            f"network {name} has scores that differ between examples, but no gradients, as attacks need: "
            "take rounding and detach() out of its forward, or return the scores before a saturated softmax"
        )
    if _apart(scores, alone) > _ROUNDING_ALONE * largest:
        raise InvalidInput(
            f"network {name} gives an example other scores alone than among others; keep what mixes the "
            "examples of a batch out of its forward, such as batch-norm without running statistics"
        )


def _uneven(scores: Float[Tensor, "K n c"]) -> Float[Tensor, "K n c"]:
    """Weights of the scores that do not cancel where these sum to 1."""
    return torch.arange(1.0, scores.shape[2] + 1).to(scores).expand_as(scores)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; two that are equal, infinite or NaN differ by nothing."""
    return float(torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, one - other).abs().max())
