"""A small made-up results table with every row that figures and report read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

FAMILIES = ("linear-binary", "linear", "mlp")
CONDITIONS = ("dense", "magnitude", "random-retrained", "random")
# Conditions of the experiment with controls, and all attacks.
CONTROLS = ("dense", "global", "one-shot", "random", "random-retrained", "lottery", "small-dense")
_ATTACKS = [
    ("linf", "fgs"),
    *((norm, "deepfool") for norm in ("l2", "linf")),
    *((norm, "best") for norm in ("l2", "linf")),
]
_MEASURED = [
    *((quantity, norm, method) for quantity in ("mean_radius", "capped") for norm, method in _ATTACKS),
    ("fgs_accuracy", "linf", "fgs"),
    ("fgs_accuracy", "linf", "fgs in the box"),
    *(
        (quantity, norm, "nearest boundary")
        for quantity in ("margin", "gradient_norm")
        for norm in ("l2", "linf")
    ),
]
_BOUNDS = {
    "linear-binary": ["exact", "Hölder on the support", "universal ceiling"],
    "linear": ["exact", "Jensen", "universal ceiling"],
    "mlp": ["certificate", "universal ceiling"],
}
_LOCAL = [
    *(("local_radius", method) for method in ("CROWN", "exact, lower", "exact, upper", "CLEVER", "best")),
    *(("local_lipschitz", method) for method in ("interval", "relaxation", "CLEVER", "sampled")),
    ("missed", "best"),
]
_RUNGS = {
    "l2": ["F", "P1", "P2", "B", "S", "best", "Monte Carlo"],
    "linf": ["M", "P1", "B", "S", "best", "Monte Carlo"],
}
_RANGES = {
    "accuracy": (0.95, 1),
    "capped": (0, 0),
    "cases": (360, 360),
    "violations": (0, 0),
    "standard_error": (0, 0.01),
}


def network_table(
    *,
    families: Sequence[str] = FAMILIES,
    conditions: Sequence[str] = CONDITIONS,
    sparsities: Sequence[float] = (0.0, 0.5, 0.9),
    seeds: int = 3,
    dataset: str = "made up",
) -> pd.DataFrame:
    """Rows about whole networks with values in [0.1, 1], high accuracy, no capped example, no violation.

    Families other than :data:`FAMILIES` have no rows of the theory. Under ``activation`` the sparsities are
    the factors of an L1 term, which achieve other shares.
    """
    rows: list[tuple[object, ...]] = []
    for family in families:
        for pruning in conditions:
            for sparsity in sparsities:
                for seed in range(seeds):
                    network = (family, pruning, sparsity, seed)
                    rows += [(*network, *entry) for entry in _entries(family, pruning)]
    table = pd.DataFrame(
        rows, columns=["family", "pruning", "sparsity", "seed", "quantity", "norm", "method"]
    )
    values = np.random.default_rng(0).uniform(0.1, 1.0, len(table))
    for quantity, (low, high) in _RANGES.items():
        chosen = (table["quantity"] == quantity).to_numpy()
        values[chosen] = low + (high - low) * values[chosen]
    checks = table["quantity"].isin(["cases", "violations", "tightness"])
    estimates = table["method"].isin(["Monte Carlo", "moment propagation"])
    return table.assign(
        value=values,
        kind=np.where(checks, "check", np.where(estimates, "estimate", "measured")),
        achieved_sparsity=_achieved(table),
        eps=np.where(table["quantity"] == "fgs_accuracy", 0.1, np.nan),
        example=pd.array([None] * len(table), dtype="Int32"),
        dataset=dataset,
        settings="0123456789ab",
        version="1.2.3",
        commit="abcdef",
        device="cpu",
        dtype="float64",
    )


def _entries(family: str, pruning: str) -> list[tuple[str, str, str]]:
    """Quantity, norm and method of every row about one network."""
    found = [*_MEASURED, ("accuracy", "", "clean")]
    if family not in _BOUNDS:
        return found
    check = "certificate <= attack" if family == "mlp" else "exact <= attack"
    found += [("mean_radius", norm, method) for method in _BOUNDS[family] for norm in ("l2", "linf")]
    found += [(name, "l2", check) for name in ("cases", "violations", "tightness")]
    if family == "mlp":
        found += [(quantity, norm, method) for quantity, method in _LOCAL for norm in ("l2", "linf")]
        found += [("missed", "l2", "deepfool"), ("missed", "linf", "fgs")]
    if family == "linear-binary":
        found.append(("fgs_accuracy", "linf", "Markov"))
    if family == "mlp" and pruning == "random":
        found += [("expected_lipschitz", norm, rung) for norm, rungs in _RUNGS.items() for rung in rungs]
        found += [("standard_error", norm, "Monte Carlo") for norm in _RUNGS]
        found += [("mean_radius", norm, "moment propagation") for norm in _RUNGS]
        found.append(("accuracy", "", "moment propagation"))
    return found


def _achieved(table: pd.DataFrame) -> pd.Series:
    """The sparsity; under ``activation`` a share of 0.4 that grows with the factor, up to 0.95."""
    share = 0.4 + 0.55 * table["sparsity"] / (table["sparsity"] + 0.01) + 0.01 * table["seed"]
    return share.where(table["pruning"] == "activation", table["sparsity"])
