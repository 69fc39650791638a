"""A judged claim, and the curves and gains that claims are judged from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

LEVEL = 0.05
# A change of less than this share of the robustness counts as none (C2, C3, C4, C6).
MARGIN = 0.05
# A sparsity has collapsed once one of its networks has lost this share of the dense network's accuracy: what
# is left is no classifier; one that gives every input the same class cannot even be attacked.
COLLAPSE = 0.10
RESAMPLES = 2000

Measure = tuple[str, str, str, str]  # label, quantity, norm, method
ACCURACY: Measure = ("accuracy", "accuracy", "", "clean")


@dataclass(frozen=True)
class Verdict:
    """One judged claim; ``effect`` with its interval [low, high] is explained by ``what``."""

    claim: str
    family: str
    measure: str
    verdict: str
    effect: float
    low: float
    high: float
    what: str
    test: str
    p_value: float
    seeds: int
    violations: int | None
    note: str


def verdict_on(
    claim: str,
    family: str,
    measure: str,
    verdict: str,
    *,
    effect: float = np.nan,
    interval: tuple[float, float] = (np.nan, np.nan),
    what: str = "",
    test: str = "",
    p_value: float = np.nan,
    seeds: int = 0,
    failures: int | None = None,
    note: str = "",
) -> Verdict:
    """A verdict with plain numbers, NaN where it has none."""
    low, high = (float(end) for end in interval)
    return Verdict(
        claim,
        family,
        measure,
        verdict,
        float(effect),
        low,
        high,
        what,
        test,
        float(p_value),
        seeds,
        failures,
        note,
    )


def curve(table: pd.DataFrame, family: str, pruning: str, measure: Measure) -> pd.DataFrame:
    """One measured quantity as seeds x sparsities."""
    return curve_of_kind(table, family, pruning, measure, ["measured", "identity"])


def curve_of_kind(
    table: pd.DataFrame, family: str, pruning: str, measure: Measure, kinds: list[str]
) -> pd.DataFrame:
    """One quantity as seeds x sparsities, from the rows of these kinds."""
    _, quantity, norm, method = measure
    chosen = table[
        (table["family"] == family)
        & (table["pruning"] == pruning)
        & (table["quantity"] == quantity)
        & (table["norm"] == norm)
        & (table["method"] == method)
        & table["kind"].isin(kinds)
    ]
    return chosen.pivot_table(index="seed", columns="sparsity", values="value", observed=True)


def gains_over_dense(
    table: pd.DataFrame, family: str, measure: Measure, *, pruning: str = "magnitude"
) -> pd.DataFrame:
    """Relative gain of a pruning over the equally trained dense network, seeds x sparsities above 0."""
    shares = share_of_dense(table, family, measure, pruning=pruning)
    return shares[[alpha for alpha in shares.columns if alpha != 0]] - 1


def share_of_dense(
    table: pd.DataFrame, family: str, measure: Measure, *, pruning: str = "magnitude"
) -> pd.DataFrame:
    """A pruning's robustness relative to the equally trained dense network's, seeds x sparsities.

    Only sparsities at which no network has collapsed and every dense network has some robustness.
    """
    pruned, dense = (curve(table, family, condition, measure) for condition in (pruning, "dense"))
    shares = (pruned / dense.where(dense > 0)).dropna(axis=1)
    sound = before_collapse(table, family, pruning)
    return shares[[alpha for alpha in shares.columns if alpha in sound]]


def before_collapse(table: pd.DataFrame, family: str, pruning: str) -> set[float]:
    """The sparsities at which no network of a pruning has collapsed."""
    kept, reference = (curve(table, family, condition, ACCURACY) for condition in (pruning, "dense"))
    sound = (kept / reference >= 1 - COLLAPSE).all()
    return set(sound.index[sound])
