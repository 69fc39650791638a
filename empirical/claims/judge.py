"""Which claims a results table speaks of, and the verdict on each."""

from __future__ import annotations

from dataclasses import asdict, fields

import pandas as pd

from empirical.claims.predictions import predictions
from empirical.claims.theorems import THEOREMS, theorem
from empirical.claims.trends import falls_again, no_improvement, some_improvement, trend
from empirical.claims.verdicts import Curves, Measure, Verdict
from theory.types import InvalidInput

STATEMENTS = {
    "C1": "Linear: l_inf robustness rises with sparsity, up to collapse",
    "C2": "Linear: no sparsity gains 5 % in l_2 robustness",
    "C3": "ReLU: some sparsity gains, 5 % or more in the mean, over the equally trained dense network",
    "C4": "ReLU: robustness rises, then over-sparsified networks fall again",
    "C5": "Random masks: E[L] <= c (1 - eta), and every rung of the ladder",
    "C6": "Activation sparsity raises robustness by 5 %; extreme sparsity lowers it again",
    "C7": "Certificate <= exact <= every attack; mean radius <= universal ceiling",
    "C8": "Linear identities hold; attacks measure the exact radius",
    "C9": "Moment propagation predicts the measured radii of masked networks",
}
LINEAR = ("linear-binary", "linear")
LINEAR_LINF: tuple[Measure, ...] = (
    ("R_inf, exact", "mean_radius", "linf", "exact"),
    ("r_inf(eps), FGS in the box", "fgs_accuracy", "linf", "fgs in the box"),
    ("r_inf(eps), FGS unclipped", "fgs_accuracy", "linf", "fgs"),
)
LINEAR_L2: tuple[Measure, ...] = (("R_2, exact", "mean_radius", "l2", "exact"),)
RELU: tuple[Measure, ...] = (
    ("R_inf, smallest FGS step", "mean_radius", "linf", "fgs"),
    ("R_inf, best attack", "mean_radius", "linf", "best"),
    ("r_inf(eps), FGS in the box", "fgs_accuracy", "linf", "fgs in the box"),
    ("r_inf(eps), FGS unclipped", "fgs_accuracy", "linf", "fgs"),
    ("r_2, DeepFool", "mean_radius", "l2", "deepfool"),
    ("R_2, best attack", "mean_radius", "l2", "best"),
)
# Conditions whose rise and fall are judged: the claims on them, and what their measures are marked with.
CONDITIONS = (
    ("magnitude", "C3", "C4", "", ""),
    ("surgery", "C3", "C4", ", surgery", ", surgery"),
    ("n-of-4", "C3", "C4", ", N:4", ", N:4"),
    ("n-of-16", "C3", "C4", ", N:16", ", N:16"),
    ("n-of-4-shuffled", "C3", "C4", ", N:4 shuffled", ", N:4 shuffled"),
    ("n-of-16-shuffled", "C3", "C4", ", N:16 shuffled", ", N:16 shuffled"),
    ("units", "C3", "C4", ", units", ", units"),
    ("activation", "C6", "C6", ", rise", ", fall"),
)


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim the network-level rows of a table speak of; one row per claim, family and measure.

    What was not measured of any pruned network is no claim: there is no row for it.
    Raises: KeyError if the table lacks a documented column; InvalidInput if it holds several data sets, or
    runs of other settings, of a family: a seed's networks are compared with each other.
    """
    verdicts: list[Verdict] = []
    for column, joint, one in (("dataset", "on", "data set"), ("settings", "of the settings", "run")):
        for family, names in table.groupby("family", observed=True)[column].unique().items():
            if len(names) > 1:
                named = ", ".join(sorted(map(str, names)))
                raise InvalidInput(f"table has {family} {joint} {named}; give the rows of one {one}")
    curves = Curves(table)
    families = [str(family) for family in table["family"].unique()]
    for family in sorted(families, key=lambda name: (name not in LINEAR, families.index(name))):
        verdicts += _linear(curves, family) if family in LINEAR else _relu(curves, family)
    checks = table[table["kind"] == "check"]
    for claim, label, names in THEOREMS:
        rows = checks[checks["method"].astype(str).str.startswith(names)]
        if len(rows):
            verdicts.append(theorem(rows, claim, label))
    frame = pd.DataFrame([asdict(v) for v in verdicts], columns=[field.name for field in fields(Verdict)])
    frame.insert(1, "statement", frame["claim"].map(STATEMENTS))
    return frame.sort_values("claim", kind="stable", ignore_index=True)


def _linear(curves: Curves, family: str) -> list[Verdict]:
    l2, linf = (
        [measure for measure in measures if curves.has(family, "magnitude", measure)]
        for measures in (LINEAR_L2, LINEAR_LINF)
    )
    return [
        *(trend(curves, family, measure) for measure in linf),
        *(no_improvement(curves, family, measure) for measure in l2),
    ]


def _relu(curves: Curves, family: str) -> list[Verdict]:
    found: list[Verdict] = []
    for pruning, rise, fall, rises, falls in CONDITIONS:
        for measure in RELU:
            if not curves.has(family, pruning, measure):
                continue
            label, quantity, norm, method = measure
            up, down = ((label + mark, quantity, norm, method) for mark in (rises, falls))
            found.append(some_improvement(curves, family, up, claim=rise, pruning=pruning))
            found.append(falls_again(curves, family, down, claim=fall, pruning=pruning))
    return found + [verdict for norm in ("linf", "l2") for verdict in predictions(curves, family, norm)]
