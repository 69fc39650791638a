"""A small made-up results table with every row that figures and report read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

FAMILIES = ("linear-binary", "linear", "mlp")
CONDITIONS = ("dense", "magnitude", "random-retrained", "random")
_MEASURED = [
    *(
        (quantity, norm, method)
        for quantity in ("mean_radius", "capped")
        for norm, method in [
            ("linf", "fgs"),
            ("l2", "deepfool"),
            ("linf", "deepfool"),
            ("l2", "best"),
            ("linf", "best"),
        ]
    ),
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
_RUNGS = {
    "l2": ["F", "P1", "P2", "B", "S", "best", "Monte Carlo"],
    "linf": ["M", "P1", "B", "S", "best", "Monte Carlo"],
}


def network_table(
    *,
    families: Sequence[str] = FAMILIES,
    sparsities: Sequence[float] = (0.0, 0.5, 0.9),
    seeds: int = 3,
    dataset: str = "made up",
) -> pd.DataFrame:
    """Rows about whole networks with values in [0.1, 1], high accuracy, no capped example, no violation."""
    rows: list[tuple[object, ...]] = []
    for family in families:
        attack = "certificate <= attack" if family == "mlp" else "exact <= attack"
        for pruning in CONDITIONS:
            for sparsity in sparsities:
                for seed in range(seeds):
                    network = (family, pruning, sparsity, seed)
                    rows += [(*network, norm, quantity, method) for quantity, norm, method in _MEASURED]
                    rows += [
                        (*network, norm, "mean_radius", method)
                        for method in _BOUNDS[family]
                        for norm in ("l2", "linf")
                    ]
                    rows.append((*network, "", "accuracy", "clean"))
                    rows += [(*network, "l2", name, attack) for name in ("cases", "violations", "tightness")]
                    if family == "linear-binary":
                        rows.append((*network, "linf", "fgs_accuracy", "Markov"))
                    if family == "mlp" and pruning == "random":
                        rows += [
                            (*network, norm, "expected_lipschitz", method)
                            for norm, methods in _RUNGS.items()
                            for method in methods
                        ]
                        rows += [(*network, norm, "standard_error", "Monte Carlo") for norm in _RUNGS]
    table = pd.DataFrame(
        rows, columns=["family", "pruning", "sparsity", "seed", "norm", "quantity", "method"]
    )
    values = np.random.default_rng(0).uniform(0.1, 1.0, len(table))
    for quantity, (low, high) in {"accuracy": (0.95, 1), "capped": (0, 0), "cases": (360, 360),
                                  "violations": (0, 0), "standard_error": (0, 0.01)}.items():  # fmt: skip
        chosen = (table["quantity"] == quantity).to_numpy()
        values[chosen] = low + (high - low) * values[chosen]
    checks = table["quantity"].isin(["cases", "violations", "tightness"])
    return table.assign(
        value=values,
        kind=np.where(checks, "check", "measured"),
        example=pd.array([None] * len(table), dtype="Int32"),
        dataset=dataset,
        settings="0123456789ab",
        version="1.2.3",
        commit="abcdef",
        device="cpu",
        dtype="float64",
    )
