"""A run's table made small enough to be committed, with how it was made in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from empirical.results import BOUNDS, SCHEMA, join_tables, read_settings, read_table, settings_id, write_table
from empirical.runs.locations import Location, names
from theory.types import InvalidInput

RUN_KEY = b"sparse_robustness.run"
_TABLES = {"results.parquet": SCHEMA, "measure.parquet": SCHEMA, "bounds.parquet": BOUNDS}


def condense(
    folder: Location,
    path: Path,
    *,
    partial: bool = False,
    examples_of: int | None = None,
    sparsities: Sequence[float] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Write the rows about whole networks of the run in ``folder`` to ``path``; returns their number.

    ``partial``: those that there are of a run that is not finished, wherever it was begun.

    With them every case in which a theorem failed, so that the table judges as the run did. Of a seed named
    by ``examples_of`` instead the rows about single examples, at the ``sparsities`` (default: all): what the
    means of the other table are made of.
    A table of bounds, whose figure is drawn from its examples, keeps all rows. The settings and the
    commands that made it become metadata of the file, under ``RUN_KEY``.
    ``tell`` hears of lines of the log that are no entries, which are left out.
    Raises: InvalidInput if the folder holds no finished run, or, if ``partial``, no rows of any, or rows of
    other settings than it says, or none of a seed or sparsity that is named, or ``path`` exists or is not
    named .parquet.
    """
    if path.suffix != ".parquet":
        raise InvalidInput(f"out is {path}, but a Parquet file is written; give a name that ends in .parquet")
    name = next((name for name in _TABLES if (folder / name).is_file()), None)
    note = folder / "settings.json"
    units = _units(folder) if partial and name is None and note.is_file() else []
    if not note.is_file() or (name is None and not units):
        rest = "" if partial else ", or take what there is of it (--partial)"
        raise InvalidInput(
            f"folder is {folder}, which holds no finished run; run the experiment to its end{rest}"
        )
    if path.exists():
        raise InvalidInput(f"out is {path}, which exists; choose another name")
    schema = _TABLES[name] if name else SCHEMA
    rows = read_table(folder / name, schema=schema) if name else join_tables(units)
    settings = read_settings(note)
    if rows["settings"].unique().to_pylist() != [settings_id(settings)]:
        raise InvalidInput(
            f"folder is {folder}, which holds rows of other settings than those of its settings.json; "
            "restore that of the run, or run it again into a new folder"
        )
    if examples_of is not None:
        rows = _examples(rows, examples_of, sparsities)
    elif sparsities is not None:
        raise InvalidInput(
            "sparsities are given without a seed whose examples to keep; name one (--examples-of)"
        )
    elif schema is SCHEMA:
        rows = rows.filter(pc.field("example").is_null() | (pc.field("quantity") == "excess"))
    runs = _logged(folder / "runs.jsonl", tell)
    told = json.dumps({"settings": settings, "runs": runs} | ({} if name else {"unfinished": True}))
    write_table(path, rows.replace_schema_metadata({**schema.metadata, RUN_KEY: told.encode()}))
    return rows.num_rows


def _examples(rows: pa.Table, seed: int, sparsities: Sequence[float] | None) -> pa.Table:
    """The rows about single examples of a seed's networks. Raises: InvalidInput where none are asked for."""
    rows = rows.filter(pc.field("example").is_valid())
    for name, wanted in (("seed", [seed]), ("sparsity", sparsities)):
        if wanted is None:
            continue
        there = sorted(rows[name].unique().to_pylist())
        if missing := [value for value in wanted if value not in there]:
            told = ", ".join(map(str, there)) or "none"
            raise InvalidInput(
                f"{name} is {missing[0]}, of which the run has no examples; it has those of {told}"
            )
        rows = rows.filter(pc.field(name).isin(wanted))
    return rows


def _units(folder: Location) -> list[Location]:
    """The tables of the parts of a run that are there, in the order of their names."""
    there = folder / "units"
    return [there / name for name in sorted(names(there)) if name.endswith(".parquet")]


def _logged(log: Location, tell: Callable[[str], None]) -> list[object]:
    """The entries of a run's runs.jsonl; a full disk leaves half of one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            tell(f"Note: line {number} of {log} is no entry, and left out")
    return found
