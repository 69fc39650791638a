"""One trial of every fault that needs no other interpreter; the driver counts as it does in full."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.faults.injection import FAULTS
from tests.faults.sweep import Difference, difference

ROOT = Path(__file__).parents[2]


def frame(values: list[float]) -> pd.DataFrame:
    keys = dict.fromkeys(["dataset", "family", "pruning", "norm", "quantity", "method"], "a")
    return pd.DataFrame(
        [
            {**keys, "sparsity": 0.0, "seed": k, "example": None, "eps": 0.1, "value": v}
            for k, v in enumerate(values)
        ]
    )


def test_lost_doubled_and_changed_rows_are_counted():
    good = frame([0.5, 0.25, float("nan"), float("inf")])
    assert difference(good, good) == Difference(0, 0, 0)
    assert difference(good[1:], good) == Difference(1, 0, 0)
    assert difference(pd.concat([good, good[:2]]), good) == Difference(0, 2, 0)
    assert difference(frame([0.5, 0.25 + 1e-16, float("nan"), 1.0]), good) == Difference(0, 0, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and rlimits")
def test_no_fault_costs_a_row(tmp_path):
    """In a fresh interpreter of one thread, so that it may fork."""
    out = tmp_path / "faults.csv"
    faults = [name for name in FAULTS if not name.startswith("worker")]
    only = [word for name in faults for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--each", "1", "--few", "1", *only, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = {row["fault"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert list(table) == faults
    assert all(row[key] == "0" for row in table.values() for key in ("lost", "doubled", "changed"))
    # A bit of a unit may lie where it changes no row; tests/empirical/test_results.py flips them all over.
    for name in ("disk full", "read-only folder", "bit flipped, data"):
        assert int(table[name]["errors"]) >= 1, name
