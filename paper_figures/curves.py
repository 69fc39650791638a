"""Curves over the levels: mean over seeds and its 95 % t-interval, and where a mean means something."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from paper_figures.subjects import Subject, seed_values

CONFIDENCE = 0.95
# A level has collapsed once a network has lost this share of the dense one's accuracy, as for the claims.
COLLAPSE = 0.10
# Where a figure shows one way of pruning: the first of these that the table holds.
TELLING = (
    "magnitude",
    "surgery",
    "global",
    "n-of-4",
    "n-of-16",
    "n-of-4-shuffled",
    "n-of-16-shuffled",
    "units",
    "lottery",
    "random-retrained",
    "small-dense",
    "one-shot",
    "random",
)
# Conditions whose networks were trained no longer than the dense network they come from.
_FIRST_TRAINING = ("one-shot", "random", "lottery")


@dataclass(frozen=True)
class Curve:
    """A mean over seeds and its interval at every level; NaN where there is none, as with one seed."""

    sparsity: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def scaled(self, factor: float) -> Curve:
        """The curve in another unit."""
        return replace(self, mean=factor * self.mean, low=factor * self.low, high=factor * self.high)


def arithmetic(values: pd.DataFrame) -> Curve:
    """Mean over the rows; NaN at a level where a seed has no finite value."""
    draws = values.to_numpy(dtype=float)
    draws = np.where(np.isfinite(draws), draws, np.nan)
    count = len(draws)
    mean = draws.mean(axis=0) if count else np.full(draws.shape[1], np.nan)
    if count > 1:
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * draws.std(axis=0, ddof=1) / np.sqrt(count)
    else:
        reach = np.full_like(mean, np.nan)
    return Curve(values.columns.to_numpy(dtype=float), mean, mean - reach, mean + reach)


def geometric(values: pd.DataFrame) -> Curve:
    """Geometric mean over the rows; NaN at a level where a seed has no finite value > 0."""
    log = arithmetic(values.where(values > 0).apply(np.log))
    return Curve(log.sparsity, np.exp(log.mean), np.exp(log.low), np.exp(log.high))


def reference(
    subject: Subject, condition: str, quantity: str, *, method: str, norm: str = ""
) -> pd.DataFrame:
    """What a condition's values are held against, seeds x levels: the dense networks trained equally long.

    For networks that were trained no longer than the dense ones they come from, these: the networks at
    level 0. Without columns where the table does not hold them.
    """
    own = seed_values(subject, condition, quantity, method=method, norm=norm)
    if condition not in _FIRST_TRAINING:
        return seed_values(subject, "dense", quantity, method=method, norm=norm)
    if 0.0 not in own.columns:
        return own.iloc[:, :0]
    return pd.DataFrame({level: own[0.0] for level in own.columns}, index=own.index)


def ratio_to_dense(
    subject: Subject, condition: str, quantity: str, *, method: str, norm: str = ""
) -> pd.DataFrame:
    """A condition's values over those they are held against, paired by seed; seeds x levels."""
    own = seed_values(subject, condition, quantity, method=method, norm=norm)
    dense = reference(subject, condition, quantity, method=method, norm=norm)
    ratio = own / dense.where(dense > 0)
    return ratio.dropna(axis="columns", how="all").dropna(axis="index", how="all")


def compared(subject: Subject) -> list[str]:
    """The conditions that the table holds together with their reference at some sparsity above 0."""
    return [
        condition
        for condition in subject.conditions
        if condition != "dense"
        and ratio_to_dense(subject, condition, "mean_radius", method="best", norm="l2").shape[1] > 1
    ]


def intact(subject: Subject, condition: str) -> pd.Series:
    """By level: does every network keep 90 % of the equally trained dense network's accuracy?

    Where the table holds no such network, of the accuracy at level 0.
    """
    kept, dense = (seed_values(subject, name, "accuracy", method="clean") for name in (condition, "dense"))
    start = kept[0.0] if 0.0 in kept else pd.Series(-np.inf, kept.index)
    wanted = dense.reindex(index=kept.index, columns=kept.columns).apply(lambda level: level.fillna(start))
    return (kept.isna() | (kept >= (1 - COLLAPSE) * wanted)).all()


def uncapped(subject: Subject, condition: str, *, method: str, norm: str) -> pd.Series:
    """By level: does no example of any network count with the cap in the mean radius?

    One in 1,000 adds 1 to 3 % to it.
    """
    return (seed_values(subject, condition, "capped", method=method, norm=norm).fillna(0) == 0).all()


def uncapped_ratio(subject: Subject, condition: str, *, method: str, norm: str) -> pd.Series:
    """By level: the same of the networks and of those that :func:`ratio_to_dense` holds them against."""
    held_against = reference(subject, condition, "capped", method=method, norm=norm)
    own = uncapped(subject, condition, method=method, norm=norm)
    return own & (held_against.fillna(0) == 0).all().reindex(own.index, fill_value=False)


def most_telling(found: list[Subject]) -> tuple[str, list[Subject]]:
    """The condition to show where one is shown, and the subjects that have it together with its reference."""
    for condition in TELLING:
        having = [
            subject
            for subject in found
            if ratio_to_dense(subject, condition, "mean_radius", method="best", norm="l2").shape[1] > 1
        ]
        if having:
            return condition, having
    return "", []
