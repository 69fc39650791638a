"""Claims that are theorems (C5, C7, C8): one violation refutes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from empirical.claims.verdicts import Verdict, verdict_on
from theory.types import InvalidInput

# The theorems behind a claim: (claim, label, checks whose names begin so).
THEOREMS = (
    ("C5", "E[L] <= every rung", ("random masks, ",)),
    ("C5", "F, P1 = c (1 - eta)", ("F = c (1 - eta)", "P1 = c (1 - eta)")),
    ("C5", "P1 <= M, P2 <= F", ("P1 <= M", "P2 <= F")),
    ("C7", "certificate <= attack", ("certificate <= attack",)),
    ("C7", "exact <= attack", ("exact <= attack",)),
    ("C7", "CROWN <= exact, attack", ("CROWN <= ",)),
    ("C7", "interval Jacobian <= attack", ("interval Jacobian <= ",)),
    ("C7", "mean <= universal ceiling", ("universal ceiling",)),
    ("C8", "identities", ("binary mean radius", "runner-up decomposition")),
    ("C8", "attack = exact radius", ("linear radius",)),
)


def theorem(rows: pd.DataFrame, claim: str, label: str) -> Verdict:
    """C5, C7, C8: count the violations in the rows of the checks that belong to one theorem.

    Raises: InvalidInput if they do not say how many cases were checked, how many failed and how closely.
    """
    values = {str(quantity): part["value"] for quantity, part in rows.groupby("quantity", observed=True)}
    if not {"violations", "cases"} <= values.keys() or not values.keys() & {"relative_error", "tightness"}:
        raise InvalidInput(
            f"table has rows {sorted(values)} of the check {label!r}; give a whole results table"
        )
    if not all(np.isfinite(values[name].sum()) for name in ("violations", "cases")):
        raise InvalidInput(f"table has no number of cases of the check {label!r}; give a whole results table")
    failures, cases = int(values["violations"].sum()), int(values["cases"].sum())
    if "relative_error" in values:
        effect, what = float(values["relative_error"].max()), "largest relative error"
    else:
        effect = float(values["tightness"].mean())
        what = "mean of smaller side / larger side, 1 where both are 0"
    families = sorted(set(rows["family"].astype(str)))
    return verdict_on(
        claim,
        families[0] if len(families) == 1 else "all",
        label,
        "refuted" if failures else "supported" if cases else "inconclusive",
        effect=effect,
        what=what,
        test=f"{cases:,} cases",
        seeds=rows["seed"].nunique(),
        failures=failures,
    )


def violations(content: pa.Table) -> pd.DataFrame:
    """Every case in which a theorem failed, the largest excess first; ``example`` is NA for a mean."""
    failed = content.filter((pc.field("kind") == "check") & (pc.field("quantity") == "excess"))
    named = ["method", "norm", "dataset", "family", "pruning", "sparsity", "seed", "example", "value"]
    frame = failed.select(named).to_pandas().rename(columns={"method": "theorem", "value": "excess"})
    return frame.sort_values("excess", ascending=False, ignore_index=True)
