"""Rows of a benchmark: printed in columns, stored as CSV, and beside them what they were measured with."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from empirical.runs.provenance import commit, cores

Row = dict[str, object]
# What a benchmark may import, as the package index calls it; RecurJac has no name there.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "torch": "torch",
    "adv_lib": "adv-lib",
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "art": "adversarial-robustness-toolbox",
    "auto_LiRPA": "auto_LiRPA",
    "bound_base": "RecurJac",
}


def report(
    rows: Iterable[Row],
    fields: Sequence[str],
    path: Path | None,
    finish: Callable[[list[Row]], list[Row]] = list,
) -> None:
    """Print the rows as ``finish`` leaves them and, if there is a path, store them there.

    Until the last one has come, those that have are in the file ``.unfinished`` beside it.
    """
    table = []
    for line in rows:
        table.append(line)
        if path:
            _write(table, fields, path.with_suffix(".unfinished"))
    table = finish(table)
    show(table, fields)
    if path:
        save(table, fields, path)


def show(table: Sequence[Row], fields: Sequence[str]) -> None:
    """Print the rows under a line of headings, every column as wide as its widest entry."""
    lines = [{field: str(line.get(field, "")) for field in fields} for line in table]
    widths = {field: max(len(field), *(len(line[field]) for line in lines)) for field in fields}
    for line in ({field: field for field in fields}, *lines):
        click.echo("  ".join(line[field].ljust(widths[field]) for field in fields).rstrip())


def save(table: Sequence[Row], fields: Sequence[str], path: Path) -> None:
    """Write the rows as CSV, under a temporary name that is moved into place, and their origin as JSON."""
    unfinished = path.with_suffix(".unfinished")
    _write(table, fields, unfinished)
    os.replace(unfinished, path)
    path.with_suffix(".json").write_text(json.dumps(origin(), indent=1) + "\n")


def origin() -> Mapping[str, object]:
    """Commit, day, processor, how busy it is, and the versions of all packages that were imported."""
    imported = [name for name in PACKAGES if name in sys.modules]
    return {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{PACKAGES[name]: _version(name) for name in imported},
    }


def _write(table: Sequence[Row], fields: Sequence[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(table)


def _processor() -> str:
    """The processor's model, or its architecture where the system does not tell."""
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    return model[1] if model else platform.machine()


def _version(name: str) -> str:
    """A package's version, or the commit of the clone that it was imported from."""
    try:
        return version(PACKAGES[name])
    except PackageNotFoundError:
        pass
    file = Path(sys.modules[name].__file__ or "")
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        return _git(file, "rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return getattr(sys.modules[name], "__version__", "unknown")


def _git(file: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
