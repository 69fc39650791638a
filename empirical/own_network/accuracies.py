"""Accuracy, which takes one pass for an example, on more examples than attacks, which take hundreds."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from empirical.attacks.active import margins
from empirical.datasets import Examples
from empirical.ensembles import Ensemble

# Examples that tell accuracies a percent apart, and those that go through the networks at once.
_ENOUGH, _AT_ONCE = 2000, 500
# The method of rows that count them, beside "clean" on the examples that attacks start from.
MORE = "clean, more examples"


def enough(data: Examples, examples: int) -> Examples:
    """The first 2,000 examples, or as many as attacks take if these are more; all where there are fewer."""
    return data.first(max(examples, _ENOUGH))


def correct(nets: Ensemble, data: Examples) -> Bool[Tensor, "K m"]:
    """Which of the examples each network decides rightly, measured; a tie is no right decision."""
    device = nets.masks[0].device
    x, y = torch.tensor(data.x.reshape(len(data.x), -1), device=device), torch.tensor(data.y, device=device)
    parts = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    with torch.no_grad():
        return torch.cat([margins(nets.logits(some), labels) > 0 for some, labels in parts], dim=1).cpu()
