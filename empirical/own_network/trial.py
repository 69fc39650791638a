"""Whether the scores of a network of the user's own can be attacked: a trial before any work."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from empirical.ensembles import Ensemble
from theory.types import InvalidInput, first_line

# Examples that are tried, and by which share of the largest score rounding may change another.
_TRIED, _ROUNDING = 8, 1e-6


def check_attackable(name: str, ensemble: Ensemble, x: Float[Tensor, "n d"]) -> None:
    """Raise InvalidInput unless scores depend on one example alone, always in the same way, with gradients.

    Attacks look for the smallest change of an example that changes a decision: they find none, or one that is
    too large, where noise or the other examples decide, or where no gradient leads to it.
    """
    x = x[:_TRIED]
    x = torch.cat([x, torch.zeros_like(x[:1])]) if len(x) == 1 else x
    try:
        scores = ensemble.logits(x)
        again, _ = ensemble.logits_and_gradient(x, lambda scores: scores[..., :1].expand_as(scores))
        alone = torch.cat([ensemble.logits(example) for example in x.split(1)], dim=1)
    except InvalidInput:
        raise
    except Exception as error:  # whatever the user's module raises
        raise InvalidInput(
            f"network {name} cannot be attacked ({first_line(error)}); its forward must compute the scores "
            "of any number of examples by differentiable operations of PyTorch, in its weights' precision"
        ) from error
    allowed = _ROUNDING * float(scores.abs().nan_to_num(posinf=0.0).max())
    if _apart(scores, again) > allowed:
        raise InvalidInput(
            f"network {name} gives the same examples other scores every time; take noise and dropout out of "
            "its forward"
        )
    if _apart(scores, alone) > allowed:
        raise InvalidInput(
            f"network {name} gives an example other scores alone than among others; keep what mixes the "
            "examples of a batch out of its forward, such as batch-norm without running statistics"
        )


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; two that are equal, infinite or NaN differ by nothing."""
    return float(torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, one - other).abs().max())
