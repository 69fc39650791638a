"""Curves over the sparsities: mean over seeds and its 95 % t-interval, and where a mean means something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
# A network has collapsed once this share of the dense network's accuracy is lost, as for the claims.
COLLAPSE = 0.10
# A mean radius says nothing once more than this share of its examples count with the cap.
CAPPED = 0.01


@dataclass(frozen=True)
class Curve:
    """A mean over seeds and its interval at every sparsity; NaN where there is none, as with one seed."""

    sparsity: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def seed_values(
    table: pd.DataFrame, *, family: str, pruning: str, quantity: str, method: str, norm: str
) -> pd.DataFrame:
    """One quantity as seeds x sparsities < 1 (a network without weights has no place on the axis)."""
    wanted = {"quantity": quantity, "method": method, "norm": norm, "family": family, "pruning": pruning}
    chosen = table
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    chosen = chosen[chosen["sparsity"] < 1]
    return chosen.pivot(index="seed", columns="sparsity", values="value").astype(float)


def arithmetic(values: pd.DataFrame) -> Curve:
    """Mean over the rows; NaN at a sparsity where a seed has no finite value."""
    finite = values.where(np.isfinite(values))
    count = len(values)
    mean = finite.mean(skipna=False)
    if count > 1:
        error = finite.std(ddof=1, skipna=False) / np.sqrt(count)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    else:
        reach = mean * np.nan
    return Curve(
        values.columns.to_numpy(dtype=float),
        mean.to_numpy(),
        (mean - reach).to_numpy(),
        (mean + reach).to_numpy(),
    )


def geometric(values: pd.DataFrame) -> Curve:
    """Geometric mean over the rows; NaN at a sparsity where a seed has no finite value > 0."""
    log = arithmetic(values.where(values > 0).apply(np.log))
    return Curve(log.sparsity, np.exp(log.mean), np.exp(log.low), np.exp(log.high))


def intact(table: pd.DataFrame, family: str, pruning: str) -> pd.Series:
    """By sparsity: do the networks keep 90 % of the equally trained dense networks' mean accuracy?"""
    kept, dense = (
        seed_values(
            table, family=family, pruning=condition, quantity="accuracy", method="clean", norm=""
        ).mean()
        for condition in (pruning, "dense")
    )
    return kept >= (1 - COLLAPSE) * dense.reindex(kept.index, fill_value=-np.inf)


def uncapped(table: pd.DataFrame, family: str, pruning: str, *, method: str, norm: str) -> pd.Series:
    """By sparsity: do at most 1 % of the examples count with the cap in the mean radius?"""
    of_family = table[table["family"] == family]
    tried = of_family[
        (of_family["quantity"] == "cases")
        & of_family["method"].isin(["exact <= attack", "certificate <= attack"])
    ]
    examples = tried["value"].max() if len(tried) else 1
    capped = seed_values(
        of_family, family=family, pruning=pruning, quantity="capped", method=method, norm=norm
    )
    return capped.mean() <= CAPPED * examples


def present(table: pd.DataFrame, column: str, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that occur in a column, in the order given."""
    found = set(table[column].unique())
    return [name for name in names if name in found]
