"""What a table speaks of: kinds of networks on data sets, each with its conditions and its values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from paper_figures.looks import CONDITIONS, FAMILIES, LINEAR, in_order

# Conditions whose level is the factor of an L1 term, not a share of weights.
FACTORS = ("activation", "l1")
# Shares of the test examples, from which their number follows where no check has counted them.
_SHARES = ("accuracy", "robust_accuracy", "fgs_accuracy")
_MOST_EXAMPLES = 100_000


@dataclass(frozen=True)
class Subject:
    """One family on one data set: its title, its rows, and the number of examples that were attacked."""

    title: str
    family: str
    rows: pd.DataFrame
    examples: int | None

    @property
    def conditions(self) -> list[str]:
        """The conditions in the order of legends."""
        return in_order(set(self.rows["pruning"].unique()), CONDITIONS)

    @property
    def is_linear(self) -> bool:
        """Whether the networks are linear classifiers."""
        return self.family in LINEAR


def subjects(table: pd.DataFrame) -> list[Subject]:
    """All families and data sets whose networks were pruned, in order of the families.

    A level is the share of weights to remove. Networks without weights are left out, and so are those with
    an L1 term and the dense networks at its factors.
    """
    factors = table["pruning"].isin(FACTORS)
    found = []
    for subject in _split(table[(table["sparsity"] < 1)]):
        rows = subject.rows
        by_factor = factors.reindex(rows.index)
        if by_factor.any():
            pruned = rows.loc[~by_factor & (rows["pruning"] != "dense"), "sparsity"]
            rows = rows[~by_factor & rows["sparsity"].isin(pruned)]
        if len(rows):
            found.append(Subject(subject.title, subject.family, rows, subject.examples))
    return found


def penalised(table: pd.DataFrame, condition: str) -> list[Subject]:
    """All families and data sets with networks that an L1 term made sparse: these, and the dense ones.

    A level is the factor of the term.
    """
    found = []
    for subject in _split(table):
        rows = subject.rows
        own = rows["pruning"] == condition
        dense = (rows["pruning"] == "dense") & rows["sparsity"].isin(rows.loc[own, "sparsity"])
        if own.any():
            found.append(Subject(subject.title, subject.family, rows[own | dense], subject.examples))
    return found


def examples(table: pd.DataFrame) -> dict[str, int]:
    """How many examples were attacked, by title of the subject; where it is known."""
    return {subject.title: subject.examples for subject in _split(table) if subject.examples}


def relu(found: Iterable[Subject]) -> list[Subject]:
    """The subjects that are no linear classifiers."""
    return [subject for subject in found if not subject.is_linear]


def seed_values(
    subject: Subject, condition: str, quantity: str, *, method: str, norm: str = ""
) -> pd.DataFrame:
    """One quantity as seeds x levels; the mean of networks that several experiments share."""
    rows = subject.rows
    chosen = rows[
        (rows["quantity"] == quantity)
        & (rows["pruning"] == condition)
        & (rows["method"] == method)
        & (rows["norm"] == norm)
    ]
    return chosen.pivot_table(
        index="seed", columns="sparsity", values="value", dropna=False, observed=True
    ).astype(float)


def _split(table: pd.DataFrame) -> list[Subject]:
    families = in_order(set(table["family"].unique()), FAMILIES)
    sources = {_source(name) for name in table["dataset"].unique()}
    found = []
    for family in families:
        of_family = table[table["family"] == family]
        for dataset in sorted(map(str, of_family["dataset"].unique())):
            title = FAMILIES.get(family, family)
            if len(sources) > 1:
                title += f", {_source(dataset)}"
            rows = of_family[of_family["dataset"] == dataset]
            examples = _examples(rows)
            found.append(Subject(title, family, rows[rows["kind"] != "check"], examples))
    return found


def _source(dataset: str) -> str:
    """``mnist`` for ``mnist:1v7``, which is a part of it."""
    return str(dataset).split(":")[0]


def _examples(rows: pd.DataFrame) -> int | None:
    """How many examples were attacked: as checks count them, else the fewest that all shares allow."""
    checks = rows[
        (rows["quantity"] == "cases") & rows["method"].isin(["exact <= attack", "certificate <= attack"])
    ]
    if len(checks):
        return int(checks["value"].max())
    shares = rows.loc[rows["quantity"].isin(_SHARES) & (rows["kind"] == "measured"), "value"].unique()
    count = 1
    for share in shares:
        fraction = Fraction(float(share)).limit_denominator(_MOST_EXAMPLES)
        if abs(float(fraction) - share) > 1e-12:
            return None
        count = math.lcm(count, fraction.denominator)
    return count if 1 < count <= _MOST_EXAMPLES else None
