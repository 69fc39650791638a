"""What a table speaks of: kinds of networks on data sets, each with its conditions and its values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from paper_figures.looks import CONDITIONS, FAMILIES, LINEAR, in_order

# Conditions whose level is the factor of an L1 term, not a share of weights.
FACTORS = ("activation", "l1")
# Shares of the test examples, from which their number follows where no check has counted them.
_SHARES = ("accuracy", "robust_accuracy", "fgs_accuracy")
_MOST_EXAMPLES = 100_000


@dataclass(frozen=True)
class Subject:
    """One family on one data set: its title, its rows, and the number of examples that were attacked.

    ``cells`` holds the rows' values as levels in columns, by condition, quantity, method, norm and seed.
    """

    title: str
    family: str
    rows: pd.DataFrame
    cells: pd.DataFrame
    examples: int | None

    @property
    def conditions(self) -> list[str]:
        """The conditions in the order of legends."""
        return in_order(set(self.rows["pruning"].unique()), CONDITIONS)

    @property
    def levels(self) -> np.ndarray:
        """Every level of any condition."""
        return self.rows["sparsity"].unique()


def subjects(table: pd.DataFrame) -> list[Subject]:
    """All families and data sets whose networks were pruned, in order of the families.

    A level is the share of weights to remove. Networks without weights are left out, and so are those with
    an L1 term and the dense networks at its factors.
    """
    found = []
    for title, rows in _split(table[table["sparsity"] < 1]):
        by_factor = rows["pruning"].isin(FACTORS)
        pruned = rows.loc[~by_factor & (rows["pruning"] != "dense"), "sparsity"]
        kept = ~by_factor & (rows["sparsity"].isin(pruned) | (not by_factor.any()))
        if kept.any():
            found.append(_subject(title, rows, kept))
    return found


def penalised(table: pd.DataFrame, condition: str) -> list[Subject]:
    """All families and data sets with networks that an L1 term made sparse: these, and the dense ones.

    A level is the factor of the term.
    """
    found = []
    for title, rows in _split(table):
        own = rows["pruning"] == condition
        dense = (rows["pruning"] == "dense") & rows["sparsity"].isin(rows.loc[own, "sparsity"])
        if own.any():
            found.append(_subject(title, rows, own | dense))
    return found


def examples(table: pd.DataFrame) -> dict[str, int]:
    """How many examples were attacked, by title of the subject; where it is known."""
    counts = {title: _examples(rows) for title, rows in _split(table)}
    return {title: count for title, count in counts.items() if count}


def around(table: pd.DataFrame) -> int:
    """Around how many examples the table looks, as its checks count them; 0 if around none."""
    counted = table[(table["quantity"] == "cases") & (table["method"] == "CROWN <= attack")]["value"]
    return int(counted.max()) if len(counted) else 0


def abscissa(table: pd.DataFrame) -> str:
    """What a level is, in percent; under network surgery the share that is cut at first, not in the end."""
    return "nominal sparsity (%)" if "surgery" in set(table["pruning"]) else "sparsity (%)"


def relu(found: Iterable[Subject]) -> list[Subject]:
    """The subjects that are no linear classifiers."""
    return [subject for subject in found if subject.family not in LINEAR]


def seed_values(
    subject: Subject, condition: str, quantity: str, *, method: str, norm: str = ""
) -> pd.DataFrame:
    """One quantity as seeds x levels; the mean of networks that several experiments share."""
    try:
        found = subject.cells.xs((condition, quantity, method, norm))
    except KeyError:
        return pd.DataFrame(columns=pd.Index([], dtype=float, name="sparsity"), dtype=float)
    assert isinstance(found, pd.DataFrame)
    return found.dropna(axis="columns", how="all")


def is_measured(subject: Subject, quantity: str, *, method: str, norm: str = "") -> bool:
    """Whether any of its networks was measured so: not every attack is asked for."""
    return any(
        seed_values(subject, condition, quantity, method=method, norm=norm).size
        for condition in subject.conditions
    )


def _split(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of every family on every data set."""
    families = in_order(set(table["family"].unique()), FAMILIES)
    several = len({_source(name) for name in table["dataset"].unique()}) > 1
    found = []
    for family in families:
        of_family = table[table["family"] == family]
        for dataset in sorted(map(str, of_family["dataset"].unique())):
            title = FAMILIES.get(family, family)
            title += f", {_source(dataset)}" if several else ""
            found.append((title, of_family[of_family["dataset"] == dataset]))
    return found


def _subject(title: str, rows: pd.DataFrame, kept: pd.Series) -> Subject:
    chosen = rows[kept & (rows["kind"] != "check")]
    key = ["pruning", "quantity", "method", "norm", "seed"]
    plain = chosen.astype(dict.fromkeys(key[:-1], str))
    cells = plain.pivot_table(index=key, columns="sparsity", values="value")
    return Subject(title, str(rows["family"].iloc[0]), chosen, cells, _examples(rows))


def _source(dataset: str) -> str:
    """``mnist`` for ``mnist:1v7``, which is a part of it."""
    return str(dataset).split(":")[0]


def _examples(rows: pd.DataFrame) -> int | None:
    """How many examples were attacked: as checks count them, else the fewest that all shares allow."""
    checks = rows[
        (rows["quantity"] == "cases") & rows["method"].isin(["exact <= attack", "certificate <= attack"])
    ]
    counts = checks.loc[np.isfinite(checks["value"]), "value"]
    if len(counts):
        return int(counts.max())
    shares = rows.loc[rows["quantity"].isin(_SHARES) & (rows["kind"] == "measured"), "value"].unique()
    if not np.isfinite(shares).all():
        return None
    count = 1
    for share in shares:
        fraction = Fraction(float(share)).limit_denominator(_MOST_EXAMPLES)
        if abs(float(fraction) - share) > 1e-12:
            return None
        count = math.lcm(count, fraction.denominator)
    return count if 1 < count <= _MOST_EXAMPLES else None
