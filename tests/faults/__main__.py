"""Inject faults into sweeps and count the rows they cost: ``python -m tests.faults``.

Every fault disturbs a sweep of its own. Afterwards the sweep is run again, its error messages are obeyed, and
its rows are compared with those of an undisturbed sweep. Exit status 1 if a row is lost, doubled or changed.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch

from empirical.runs.workers import BACKENDS
from tests.faults.injection import FAULTS, Case, Missed
from tests.faults.sweep import Difference, difference, rows, run, tiny

# Faults that wait for interpreters to start, or for limits that time does not move, need fewer trials.
_FEW = ("read-only folder", *(f"worker killed, {name}" for name in BACKENDS))
_PACKAGES = {"worker killed, dask": "distributed", "worker killed, ray": "ray"}


@click.command()
@click.option(
    "--each", type=int, default=10, show_default=True, help="Trials of every fault; twice for kill -9."
)
@click.option("--few", type=int, default=3, show_default=True, help="Trials of the slow ones.")
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="Only these faults.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table here.")
def main(each: int, few: int, only: tuple[str, ...], seed: int, out: Path | None) -> None:
    """Inject faults into a tiny sweep, at random moments that SEED decides, and count rows."""
    torch.set_num_threads(1)
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the child that may not write must still read
        experiments = tiny(folder)
        run(experiments, folder / "undisturbed")
        for fault in only or FAULTS:
            if fault in _PACKAGES and importlib.util.find_spec(_PACKAGES[fault]) is None:
                continue
            count = few if fault in _FEW else 2 * each if fault == "kill -9" else each
            found = _trials(fault, count, seed, experiments=experiments, folder=folder)
            click.echo("  ".join(f"{key} {value}" for key, value in found.items()))
            table.append(found)
    if out:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    sys.exit(any(row[key] for row in table for key in Difference.__dataclass_fields__))


def _trials(fault: str, count: int, seed: int, *, experiments: list, folder: Path) -> dict[str, object]:
    """One row of the table."""
    started, undisturbed = time.perf_counter(), rows(folder / "undisturbed")
    data = Path(experiments[0].data)
    case = Case(experiments, folder / "disturbed", folder / "undisturbed", data.read_bytes())
    errors, sums = 0, dict.fromkeys(Difference.__dataclass_fields__, 0)
    trials = itertools.count()
    for _ in range(count):
        errors += _hit(fault, case, trials, seed)
        for key, value in asdict(difference(rows(case.out), undisturbed)).items():
            sums[key] += value
        shutil.rmtree(case.out)
        data.write_bytes(case.data)
    told: dict[str, object] = {
        "fault": fault,
        "injected": count,
        "errors": errors,
        "rows": count * len(undisturbed),
    }
    return told | sums | {"seconds": round(time.perf_counter() - started, 1)}


def _hit(fault: str, case: Case, trials: Iterator[int], seed: int) -> int:
    """Inject the fault until it hits before the sweep is done; returns how often the sweep complained."""
    for trial in trials:
        try:
            return FAULTS[fault](case, np.random.default_rng([seed, trial, *fault.encode()]))
        except Missed:
            shutil.rmtree(case.out)
    raise AssertionError("trials never end")


if __name__ == "__main__":
    main()
