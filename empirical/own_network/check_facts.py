"""The numbers that a page about one network is made of, from the rows of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import pad

from empirical.own_network.accuracies import MORE
from empirical.own_network.check import Findings

CONFIDENCE = 0.95
# A level of pruning is harmless while accuracy is within this share of the examples of what it was.
HARMLESS = 0.02
GROUP = 4  # of inputs, of which sparse tensor cores skip two


@dataclass(frozen=True)
class Layer:
    """One pruned or prunable parameter, read as (outputs, inputs, ...).

    ``densest`` is the largest number of weights that are not zero in any group of four inputs, 1 to 4, 5 to
    8, ..., of an output: 2 or less is 2:4 sparsity. None where there are fewer than four inputs. ``silent``
    outputs have no weights left.
    """

    name: str
    shape: str
    weights: int
    zeros: int
    densest: int | None
    silent: int

    @property
    def sparsity(self) -> float:
        """The share of its entries that are zero."""
        return self.zeros / self.weights


def layers(findings: Findings) -> list[Layer]:
    """The weights that multiply values, each by the name of its parameter, and all together."""
    found = [_layer(name, weight) for name, weight in findings.network.weights.items()]
    total = Layer(
        "all layers",
        "",
        sum(part.weights for part in found),
        sum(part.zeros for part in found),
        max((part.densest for part in found if part.densest is not None), default=None),
        sum(part.silent for part in found),
    )
    return [*found, total]


def _layer(name: str, weight: Tensor) -> Layer:
    there = weight != 0
    inputs = weight.shape[1]
    fours = pad(there.movedim(1, -1).int(), (0, -inputs % GROUP)).unflatten(-1, (-1, GROUP)).sum(-1)
    return Layer(
        name,
        " x ".join(map(str, weight.shape)),
        weight.numel(),
        int((~there).sum()),
        int(fours.max()) if inputs >= GROUP else None,
        int((~there.flatten(1).any(1)).sum()),
    )


@dataclass(frozen=True)
class Accuracy:
    """The share of n examples that are decided rightly, and the ends of its Wilson interval."""

    value: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(value: float, count: int) -> Accuracy:
        """From a share of ``count`` examples."""
        interval = binomtest(round(value * count), count).proportion_ci(CONFIDENCE, method="wilson")
        return Accuracy(value, float(interval.low), float(interval.high), count)


def attacked_accuracy(findings: Findings) -> Accuracy:
    """Clean accuracy on the examples that attacks start from."""
    rows = findings.measured
    value = float(rows.loc[(rows["quantity"] == "accuracy"), "value"].iloc[0])
    return Accuracy.of(value, rows.loc[rows["quantity"] == "radius", "example"].nunique())


def accuracy(findings: Findings) -> Accuracy:
    """Clean accuracy on all the examples that tell it."""
    return Accuracy.of(float(_pruned_accuracies(findings)["value"].iloc[0]), findings.tested)


def _pruned_accuracies(findings: Findings) -> pd.DataFrame:
    """The rows of accuracy on those examples, from the given network on to the most pruned."""
    rows = findings.further
    chosen = (rows["quantity"] == "accuracy") & (rows["method"] == MORE)
    return rows[chosen & (rows["pruning"] == "one-shot")].sort_values("sparsity")


def harmless(findings: Findings) -> float | None:
    """The highest level of magnitude pruning up to which accuracy stays as it was; 0 if none does.

    None for a network that may be no better than a constant decision: it has nothing to lose.
    """
    if accuracy(findings).low <= findings.constant:
        return None
    rows = _pruned_accuracies(findings)
    kept = rows["value"] >= rows["value"].iloc[0] - HARMLESS
    lost = rows.loc[~kept, "sparsity"]
    return float(rows.loc[kept & (rows["sparsity"] < lost.min() if len(lost) else True), "sparsity"].max())
