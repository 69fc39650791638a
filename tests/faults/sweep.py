"""A tiny but complete sweep, and what is left of its rows after faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from empirical.datasets import load
from empirical.experiments import Experiment, Network
from empirical.results import SCHEMA, read_table
from empirical.runs.locations import Location
from empirical.runs.run import run_experiments
from empirical.training.recipe import Recipe

CPU = torch.device("cpu")
# What tells one row from another, and what it says; not which machine and commit it is from.
KEY = ["dataset", "family", "pruning", "sparsity", "seed", "example", "norm", "quantity", "method", "eps"]
SAME = [name for name in SCHEMA.names if name not in ("version", "commit", "device")]


def tiny(folder: Path, *, seeds: int = 1) -> list[Experiment]:
    """Linear classifiers of a part of the digits, stored in ``folder``: 15 units a seed, a second or two."""
    digits = load("digits")
    x, y = digits.x_train[::12], digits.y_train[::12]
    path = folder / "few.npz"
    np.savez(path, x_train=x, y_train=y, x_test=digits.x_test[::12], y_test=digits.y_test[::12])
    recipe = Recipe(epochs=2, batch_size=32)
    return [
        Experiment(
            "tiny",
            "Faults",
            str(path),
            Network("linear"),
            (0.0, 0.3, 0.5, 0.7, 0.9),
            conditions=("dense", "magnitude", "random-retrained"),
            seeds=seeds,
            first=recipe,
            retrain=recipe,
            attacks=("fgs", "deepfool"),
        )
    ]


def tinier(folder: Path) -> list[Experiment]:
    """Two seeds of three units each, a third of a second."""
    return [
        replace(e, conditions=("magnitude",), sparsities=(0.0, 0.5, 0.9), attacks=("fgs",))
        for e in tiny(folder, seeds=2)
    ]


def run(experiments: Sequence[Experiment], out: Location) -> None:
    """The whole sweep, in this process."""
    run_experiments(experiments, out, device=CPU)


def rows(out: Location) -> pd.DataFrame:
    """All rows of a finished sweep, in an order of their own."""
    found = read_table(out / "results.parquet").to_pandas()[SAME]
    found = found.astype({name: str for name in KEY if found[name].dtype == "category"})
    return found.sort_values(KEY, ignore_index=True)


@dataclass(frozen=True)
class Difference:
    """What faults did to the rows: how many are missing, there twice, or there with another value."""

    lost: int
    doubled: int
    changed: int


def difference(found: pd.DataFrame, undisturbed: pd.DataFrame) -> Difference:
    """How a sweep's rows differ from those of an undisturbed one; values are compared bit for bit."""
    doubled = int(found.duplicated(KEY).sum())
    once = found.drop_duplicates(KEY)
    both = undisturbed.merge(once, on=KEY, how="left", suffixes=("", "_found"), indicator=True)
    there = both[both["_merge"] == "both"]
    bits = [there[name].to_numpy(np.float64).view(np.int64) for name in ("value", "value_found")]
    changed = int((bits[0] != bits[1]).sum()) + len(once) - len(there)
    return Difference(len(both) - len(there), doubled, changed)


def mended(work: Callable[[], object], mend: Callable[[Exception], None], *, attempts: int = 5) -> int:
    """Repeat ``work`` until it succeeds, following the advice of its errors; returns how many there were."""
    for errors in range(attempts):
        try:
            work()
        except Exception as error:
            mend(error)
        else:
            return errors
    raise AssertionError(f"not mended in {attempts} attempts")
