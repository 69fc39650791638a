"""The results table: its columns, and reading and writing it without ever losing a row.

Every number is one row; ``docs/results.md`` explains the columns. Files are written under a temporary
name and moved into place, so a reader sees a whole file or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array
from safetensors import SafetensorError, safe_open

from empirical.runs.locations import (
    Location,
    Unreachable,
    make_folder,
    names,
    on_disk,
    remove_abandoned,
    write_atomically,
)
from paper_figures.parquet import BOUNDS_VERSION, SCHEMA_KEY, BadParquet, read_parquet, schema_version
from theory.types import InvalidInput, first_line

SCHEMA_VERSION = "1"
_DIGEST = "sha256"  # in settings.json, of all its other entries
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("settings", TEXT),
        ("version", TEXT),
        ("commit", TEXT),
        ("device", TEXT),
        ("dtype", TEXT),
        ("dataset", TEXT),
        ("family", TEXT),
        ("pruning", TEXT),
        ("sparsity", pa.float64()),
        ("achieved_sparsity", pa.float64()),
        ("seed", pa.int64()),
        ("example", pa.int32()),
        ("norm", TEXT),
        ("quantity", TEXT),
        ("method", TEXT),
        ("kind", TEXT),
        ("eps", pa.float64()),
        ("value", pa.float64()),
    ],
    metadata={SCHEMA_KEY: SCHEMA_VERSION.encode()},
)
_SETTINGS = pa.schema([("settings", TEXT)])
_NETWORKS = ".safetensors"
# The table of bounds of one network; docs/bounds.md explains its columns.
BOUNDS = pa.schema(
    [
        ("settings", TEXT),
        ("model", TEXT),
        ("model_sha256", TEXT),
        ("data", TEXT),
        ("version", TEXT),
        ("commit", TEXT),
        ("device", TEXT),
        ("dtype", TEXT),
        ("examples", pa.int64()),
        ("seconds", pa.float64()),
        ("quantity", TEXT),
        ("norm", TEXT),
        ("method", TEXT),
        ("nature", TEXT),
        ("pair", TEXT),
        ("radius", pa.float64()),
        ("sparsity", pa.float64()),
        ("example", pa.int32()),
        ("value", pa.float64()),
    ],
    metadata={SCHEMA_KEY: BOUNDS_VERSION.encode()},
)
# Columns that a row may lack an entry of.
_NULLABLE = ("achieved_sparsity", "example", "eps", "value")
KINDS = ("measured", "identity", "upper bound", "lower bound", "estimate", "check")
# What commands leave in a run's folder.
_FOLDERS = ("checkpoints", "units", "figures")
_TABLES = ("results.parquet", "measure.parquet", "bounds.parquet", "further_pruning.parquet")
INCOMPLETE = "incomplete.parquet"  # what there is of a run of which a training diverged
_OURS = {*_FOLDERS, *_TABLES, INCOMPLETE, "unfinished", "report.html", "runs.jsonl"}
# Folders of a run in a store where a folder is there once it holds a file; each says that the run is ours.
_MARKS = {"units", "checkpoints", "unfinished"}
# Errors of a folder that is the right one all the same.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.ESTALE}
NORMS = {2.0: "l2", np.inf: "linf"}


@dataclass(frozen=True)
class Members:
    """What tells the K networks of an ensemble apart: one entry of each field per member."""

    dataset: str
    family: str
    pruning: Sequence[str]
    sparsity: Sequence[float]
    achieved_sparsity: Sequence[float]
    seed: Sequence[int]

    def __len__(self) -> int:
        return len(self.seed)


@dataclass(frozen=True)
class Rows:
    """One quantity of every member: ``values`` is (K,), one row per network, or (K, n), one per example.

    Where ``keep`` is given, only the entries it marks become rows.
    Raises: InvalidInput if the first dimension is not the number of members or the kind is unknown.
    """

    members: Members
    values: Shaped[Array, "K *n"]
    quantity: str
    method: str
    kind: str
    norm: str = ""
    eps: float = np.nan
    keep: Bool[Array, "K *n"] | None = None

    def __post_init__(self) -> None:
        if len(self.values) != len(self.members):
            raise InvalidInput(
                f"{self.quantity} has shape {self.values.shape}; expected one row for each of "
                f"{len(self.members)} members"
            )
        if self.kind not in KINDS:
            raise InvalidInput(f"kind is {self.kind!r}; choose one of {', '.join(KINDS)}")

    def kept(self) -> Bool[Array, "K n"]:
        """Which entries become rows."""
        keep = np.ones(self.values.shape, dtype=bool) if self.keep is None else self.keep
        return keep.reshape(len(self.values), -1)


def table(parts: Sequence[Rows], *, provenance: dict[str, str]) -> pa.Table:
    """All parts as one table of the documented schema; ``provenance`` fills the columns about the run."""
    kept = [part.kept() for part in parts]
    counts = [keep.sum(1) for keep in kept]
    totals = [int(count.sum()) for count in counts]
    columns: dict[str, pa.Array] = {name: _text([text], [sum(totals)]) for name, text in provenance.items()}
    for name in ("dataset", "family"):
        columns[name] = _text([getattr(part.members, name) for part in parts], totals)
    for name in ("norm", "quantity", "method", "kind"):
        columns[name] = _text([getattr(part, name) for part in parts], totals)
    runs = np.concatenate(counts)
    columns["pruning"] = _text([text for part in parts for text in part.members.pruning], runs)
    for name in ("sparsity", "achieved_sparsity", "seed"):
        each = np.concatenate([np.asarray(getattr(part.members, name)) for part in parts])
        columns[name] = pa.array(np.repeat(each, runs))
    columns["eps"] = pa.array(np.repeat([part.eps for part in parts], totals))
    values = [part.values.reshape(keep.shape)[keep] for part, keep in zip(parts, kept, strict=True)]
    columns["value"] = pa.array(np.concatenate(values).astype(np.float64))
    example = np.concatenate([np.nonzero(keep)[1] for keep in kept])
    whole = np.repeat([part.values.ndim == 1 for part in parts], totals)
    columns["example"] = pa.array(example.astype(np.int32), mask=whole)
    return pa.table([columns[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def _text(texts: Sequence[str], lengths: Sequence[int] | np.ndarray) -> pa.DictionaryArray:
    """Each text repeated ``length`` times, stored as codes."""
    words, codes = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    return pa.DictionaryArray.from_arrays(np.repeat(codes.astype(np.int32), lengths), words.tolist())


def write_table(path: Location, content: pa.Table) -> None:
    """Write a results table atomically, with a checksum of every page."""

    def write(temporary: Path) -> None:
        pq.write_table(content, temporary, compression="zstd", write_page_checksum=True)

    write_atomically(path, write)


def join_tables(paths: Iterable[Location]) -> pa.Table:
    """The rows of several results tables. Raises: InvalidInput as :func:`read_table`."""
    return pa.concat_tables([read_table(path) for path in paths]).unify_dictionaries()


def read_table(
    path: Location, *, schema: pa.Schema = SCHEMA, remedy: str = "delete it and run again"
) -> pa.Table:
    """Read a results table.

    Raises: InvalidInput, which ends in the remedy, if it is damaged, of another schema or declares too much;
    Unreachable if it cannot be read.
    """
    wanted = schema.metadata[SCHEMA_KEY].decode()
    try:
        with on_disk(path) as there:
            version = schema_version(there, SCHEMA_KEY)
            content = read_parquet(there, schema) if version == wanted else None
    except (OSError, BadParquet) as error:
        raise InvalidInput(f"results file {path} is damaged ({first_line(error)}); {remedy}") from error
    if content is None and version == BOUNDS_VERSION:
        raise InvalidInput(f"results file {path} is a table of bounds, not of results; {remedy}")
    if content is None:
        raise InvalidInput(
            f"results file {path} has schema {version}, not {wanted}: another program or version wrote it; "
            "choose another file or folder"
        )
    if not content.num_rows:
        raise InvalidInput(f"results file {path} has no rows; {remedy}")
    needed = [name for name in SCHEMA.names if name not in _NULLABLE] if schema is SCHEMA else []
    empty = [name for name in needed if content[name].null_count]
    if empty:
        raise InvalidInput(f"results file {path} is damaged ({empty[0]} lacks entries); {remedy}")
    return content


def read_final(path: Location, *, settings: str, schema: pa.Schema = SCHEMA) -> pa.Table:
    """The table of a finished run whose settings have this id.

    Raises: as :func:`read_table`; InvalidInput if it is another run's.
    """
    content = read_table(path, schema=schema)
    if content["settings"].unique().to_pylist() != [settings]:
        raise InvalidInput(f"results file {path} belongs to a run with other settings; choose a new folder")
    return content


def settings_id(settings: Mapping[str, object]) -> str:
    """Twelve hexadecimal digits that name the settings."""
    return _digest(settings)[:12]


def as_stored(out: Location, settings: dict[str, object]) -> dict[str, object]:
    """The settings that the run in ``out`` has noted, if these differ from them in words alone; else these.

    Words are titles, and the folder in which the same data lie: on another machine that is another one.
    Raises: InvalidInput if they are damaged or cannot be read.
    """
    note = out / "settings.json"
    try:
        found = read_settings(note) if note.is_file() else settings
    except (OSError, Unreachable) as error:
        raise InvalidInput(f"out is {out}, but {first_line(error)}") from error
    return found if _without_words(found) == _without_words(settings) else settings


def _without_words(settings: Mapping[str, object]) -> dict[str, object]:
    short = {key: PurePath(str(value)).name for key, value in settings.items() if key.endswith(".data")}
    return {key: value for key, value in settings.items() if not key.endswith(".title")} | short


def open_run(out: Location, settings: dict[str, object], *, parts: Sequence[str] = _FOLDERS) -> None:
    """Make ``out``, with folders for its ``parts``, that of the run with these settings, new or continued.

    A run's folder whose settings.json was deleted gets it again, if it is that of its units and networks,
    which name their settings too.
    What killed commands left half written is deleted. A finished run's folder need not be writable.
    Raises: InvalidInput if it cannot be written, holds a run with other settings, or holds other files.
    """
    note = out / "settings.json"
    marks = {"units"} if isinstance(out, Path) else _MARKS
    try:
        make_folder(out)
        entries = {name for name in names(out) if not name.startswith(".")}
        if note.is_file():
            _check_same(note, settings)
        elif entries and (entries.isdisjoint(marks) or not _OURS.issuperset(entries)):
            other = min(entries - _OURS, default=min(entries))
            raise InvalidInput(f"out is {out}, which holds {other} and no settings.json; choose a new folder")
        else:
            name, named = _named_in(out)
            if named - {settings_id(settings)}:
                raise InvalidInput(
                    f"out is {out}, which has no settings.json and holds {name} of a run with other "
                    "settings; choose a new folder"
                )
        finished = note.is_file() and not entries.isdisjoint(_TABLES)
        if not finished:  # written anew, so that a folder that cannot be written is known before any work
            noted = json.dumps({**settings, _DIGEST: _digest(settings)}, indent=1) + "\n"
            write_atomically(note, lambda temporary: temporary.write_text(noted))
        for part in parts:
            with suppress(OSError) if finished else nullcontext():
                make_folder(out / part)
        if isinstance(out, Path):
            remove_abandoned(out)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        remedy = "mend that and run again" if cause.errno in _PASSING else "choose another folder"
        raise InvalidInput(
            f"out is {out}, which cannot be written ({cause.strerror or cause}); {remedy}"
        ) from error
    except Unreachable as error:
        raise InvalidInput(f"out is {out}, but {error}") from error


def read_settings(note: Location) -> dict[str, object]:
    """The settings that a run's settings.json holds.

    Raises: InvalidInput naming it if it is damaged, Unreachable if it cannot be read.
    """
    try:
        with on_disk(note) as there:
            found = json.loads(there.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no table")
        digest = found.pop(_DIGEST, None)
        if digest not in (None, _digest(found)):
            raise ValueError("its digest differs")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{note} is damaged ({first_line(error)}); delete it and run again") from error
    return found


def _named_in(out: Location) -> tuple[str, set[str]]:
    """The first file of a run in ``out`` that names settings, and these; empty if there is none.

    A damaged one says nothing here: whoever needs it will name it.
    """
    for folder, suffix in ((out, ".parquet"), (out / "units", ".parquet"), (out / "checkpoints", _NETWORKS)):
        for name in sorted(names(folder)):
            if not name.endswith(suffix):
                continue
            with suppress(OSError, BadParquet, SafetensorError), on_disk(folder / name) as file:
                if suffix == _NETWORKS:
                    with safe_open(file, framework="numpy") as networks:
                        found = (networks.metadata() or {}).get("settings")
                    found = {found} if found else set()
                else:
                    found = set(read_parquet(file, _SETTINGS)["settings"].unique().to_pylist())
                if found:
                    return name, found
    return "", set()


def _digest(settings: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _check_same(note: Location, settings: dict[str, object]) -> None:
    found = read_settings(note)
    changed = [key for key in settings | found if found.get(key) != settings.get(key)]
    wanted, there = ([own[key] for key in own if key.endswith(".name")] for own in (settings, found))
    if wanted and there and wanted != there:
        raise InvalidInput(
            f"out is {note.parent}, a run of {', '.join(map(str, there))}, not of "
            f"{', '.join(map(str, wanted))}; choose a new folder"
        )
    lacking = [key for key in settings if key not in found]
    if lacking and not settings.keys() >= found.keys():
        raise InvalidInput(
            f"out is {note.parent}, a run of another command, or another version of this one (its settings "
            f"lack {lacking[0]}); choose a new folder"
        )
    if {"model", "model_sha256", "computed_sha256"} & set(changed):
        raise InvalidInput(
            f"out is {note.parent}, a run of another network, {found.get('model')}, whose content, name or "
            f"architecture differs from that of {settings.get('model')}; choose a new folder"
        )
    if changed:
        key = changed[0]
        if key.endswith("data_sha256"):
            raise InvalidInput(
                f"out is {note.parent}, a run on other examples ({key}): its data has changed since; "
                "restore it, or choose a new folder"
            )
        raise InvalidInput(
            f"out is {note.parent}, a run with {key} = {found.get(key)!r}, not {settings.get(key)!r}; "
            "choose a new folder"
        )
