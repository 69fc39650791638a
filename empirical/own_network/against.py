"""A pruned network beside its dense reference: the same examples, attacks and certificates for both.

What is measured comes with an interval over the examples, which are paired. What is certain needs none: the
true radius of an example lies between its certificate and its best attack, in either network.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import stats

from empirical.own_network.loading import Network
from empirical.own_network.sandwiches import Sandwich
from empirical.results import SCHEMA_KEY, TEXT, read_table, write_table
from theory.types import InvalidInput

CONFIDENCE = 0.95
# The nature of what certificates and attacks of both networks leave open, and no more.
BOUNDED = "lower bound, upper bound"
# Resamples, and how many examples of resamples are in memory at a time.
_RESAMPLES, _BATCH = 9999, 2**21
# A quantity of both networks a row; docs/check.md explains the columns.
COMPARISON = pa.schema(
    [
        *((name, TEXT) for name in ("settings", "reference", "reference_sha256")),
        *((name, TEXT) for name in ("quantity", "norm", "nature")),
        ("examples", pa.int64()),
        *((name, pa.float64()) for name in ("dense", "pruned", "change", "low", "high")),
    ],
    metadata={SCHEMA_KEY: b"comparison 1"},
)


@dataclass(frozen=True)
class Side:
    """What one of the two networks brings: where it is right, its radii, and the rows of ``measure``."""

    network: Network
    right: Bool[Array, " m"]
    radii: list[Sandwich]
    measured: pd.DataFrame

    def mean(self, quantity: str, norm: str) -> float:
        """A mean at the nearest boundary; NaN where no example is right."""
        rows = self.measured
        chosen = (rows["quantity"] == quantity) & (rows["norm"] == norm) & rows["example"].isna()
        return float(rows.loc[chosen & (rows["method"] == "nearest boundary"), "value"].iloc[0])


@dataclass(frozen=True)
class Row:
    """One quantity of both networks; ``change`` and its interval are in the unit that docs/check.md gives."""

    quantity: str
    norm: str
    nature: str
    examples: int
    dense: float
    pruned: float
    change: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Reference:
    """The dense network, the comparison with it, and its radii."""

    network: Network
    rows: list[Row]
    radii: list[Sandwich]

    def about(self, norm: str, *, bounded: bool = False) -> list[Row]:
        """The rows in one norm, or "" for those in none: what is bounded by certificates, or all else."""
        return [row for row in self.rows if row.norm == norm and (row.nature == BOUNDED) == bounded]


def compare(dense: Side, pruned: Side, out: Path, *, provenance: dict[str, str]) -> Reference:
    """The comparison, in ``out``/comparison.parquet; what is there already is only read.

    Raises: InvalidInput for a table of another comparison, or a damaged one.
    """
    path = out / "comparison.parquet"
    run = {
        "settings": provenance["settings"],
        "reference": dense.network.name,
        "reference_sha256": dense.network.sha256,
    }
    if path.is_file():
        content = read_table(path, schema=COMPARISON)
        if any(set(content[name].to_pylist()) != {entry} for name, entry in run.items()):
            raise InvalidInput(f"results file {path} belongs to another run; choose a new folder")
    else:
        content = pa.Table.from_pylist([run | asdict(row) for row in rows(dense, pruned)], COMPARISON)
        write_table(path, content)
    names = [field.name for field in fields(Row)]
    found = [Row(**entries) for entries in content.select(names).to_pylist()]
    return Reference(dense.network, found, dense.radii)


def rows(dense: Side, pruned: Side) -> list[Row]:
    """Sparsity, accuracy, and in each norm radii, what is certain of them, margins and gradient norms."""
    zeros = dense.network.sparsity, pruned.network.sparsity
    found = [
        Row("sparsity", "", "identity", len(dense.right), *zeros, zeros[1] - zeros[0]),
        Row("accuracy", "", "measured", len(dense.right), dense.right.mean(), pruned.right.mean(),
            *difference_of_shares(dense.right, pruned.right)),
    ]  # fmt: skip
    for before, after in zip(dense.radii, pruned.radii, strict=True):
        norm, cap, n = before.norm, before.cap, len(before.attacked)
        one, other = np.minimum(before.attacked, cap), np.minimum(after.attacked, cap)
        found.append(
            Row("mean_radius", norm, "measured", n, one.mean(), other.mean(), *ratio_of_means(one, other))
        )
        if before.certified is not None and after.certified is not None:
            found += _certain(norm, (before.certified, one), (after.certified, other), cap)
        for quantity in ("margin", "gradient_norm"):
            means = dense.mean(quantity, norm), pruned.mean(quantity, norm)
            found.append(Row(quantity, norm, "measured", n, *means, _relative(*means)))
    return found


def _certain(
    norm: str,
    before: tuple[Float[Array, " n"], Float[Array, " n"]],
    after: tuple[Float[Array, " n"], Float[Array, " n"]],
    cap: float,
) -> list[Row]:
    """What the ends of both networks' radii, certified and attacked, say of the mean and of every example."""
    (least, most), (low, high) = ((np.minimum(ends[0], cap), ends[1]) for ends in (before, after))
    means = least.mean(), low.mean()
    change = _relative(most.mean(), low.mean()), _relative(least.mean(), high.mean())
    worse, better = float((high < least).mean()), float((low > most).mean())
    return [
        Row("mean_certified_radius", norm, "lower bound", len(low), *means, _relative(*means)),
        Row("mean_radius", norm, BOUNDED, len(low), math.nan, math.nan, math.nan, *change),
        Row("more_robust", norm, BOUNDED, len(low), worse, better, better - worse),
    ]


def _relative(before: float, after: float) -> float:
    """The change as a share of what was before; inf from 0 on, NaN from 0 to 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(after) / np.float64(before)) - 1


def difference_of_shares(before: Bool[Array, " m"], after: Bool[Array, " m"]) -> tuple[float, float, float]:
    """The paired difference of two shares and its 95 % interval (Bonett and Price 2012), an estimate."""
    m = len(before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    up, down = (gained + 1) / (m + 2), (lost + 1) / (m + 2)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (m + 2))
    return (gained - lost) / m, max(-1.0, up - down - half), min(1.0, up - down + half)


def ratio_of_means(before: Float[Array, " n"], after: Float[Array, " n"]) -> tuple[float, float, float]:
    """The relative change of the mean and its 95 % interval over paired examples, an estimate.

    The interval is the bias-corrected and accelerated bootstrap's; NaN where all resamples are alike.
    """
    value = _relative(before.mean(), after.mean())
    if not math.isfinite(value) or len(before) < 2:
        return value, math.nan, math.nan

    def change(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return other.mean(axis) / one.mean(axis) - 1

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (before, after),
            change,
            paired=True,
            confidence_level=CONFIDENCE,
            n_resamples=_RESAMPLES,
            batch=max(1, _BATCH // len(before)),
            rng=0,
        ).confidence_interval
    return value, float(found.low), float(found.high)
