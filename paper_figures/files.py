"""From results tables to files: the rows that figures read, and a folder of figures with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import joblib
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from paper_figures.gallery import FORMATS, caption, drawn, render
from paper_figures.parquet import BOUNDS_VERSION, SCHEMA_KEY, BadParquet, read_parquet, schema_version

_TEXT = pa.dictionary(pa.int32(), pa.string())
# Numbers that a row may lack.
_NUMBERS = ("achieved_sparsity", "eps", "value")
_COLUMNS = pa.schema(
    {name: _TEXT for name in ("dataset", "family", "pruning", "norm", "quantity", "method", "kind")}
    | {name: pa.float64() for name in ("sparsity", *_NUMBERS)}
    | {"seed": pa.int64(), "example": pa.int32()}
)
# What a run calls its table; such a table is named after its folder.
_RESULTS = "results"


class BadTable(ValueError):
    """A table that cannot be read, or a folder that cannot be written; one line says which and why."""


def read_network_rows(path: Path) -> pd.DataFrame:
    """The rows about whole networks. Raises: BadTable if the file is missing, damaged or another table."""
    try:
        if schema_version(path, SCHEMA_KEY) == BOUNDS_VERSION:
            raise BadTable(
                f"{path} is a table of bounds, not of results; the command bounds draws its figure, beside "
                "the table that it writes"
            )
        content = read_parquet(path, _COLUMNS, where=pc.field("example").is_null())
    except FileNotFoundError as error:
        raise BadTable(f"table is {path}, which does not exist; give the results.parquet of a run") from error
    except (OSError, BadParquet) as error:
        raise BadTable(f"{path} is no readable results table ({error})") from error
    content = content.drop_columns(["example"])
    if not content.num_rows:
        raise BadTable(f"{path} has no row about a whole network")
    empty = [name for name in content.schema.names if name not in _NUMBERS and content[name].null_count]
    if empty:
        raise BadTable(f"{path} is no readable results table (its column {empty[0]} has empty entries)")
    return content.to_pandas()


def table_names(paths: Sequence[Path]) -> list[str]:
    """What the tables' folders of figures are called. Raises: BadTable if two would share one."""
    names = [path.resolve().parent.name if path.stem == _RESULTS else path.stem for path in paths]
    for name, path in zip(names, paths, strict=True):
        if names.count(name) > 1:
            raise BadTable(f"{path} is one of two tables named {name}; draw them one by one")
    return names


def write_figures(path: Path, out: Path, *, width: float) -> list[Path]:
    """Draw every figure of one table into ``out``, with ``captions.md``; returns the files.

    Raises: BadTable for a bad table or a folder that cannot be written.
    """
    table = read_network_rows(path)
    captions, files = [], []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry, figure in drawn(table, width=width):
            captions.append(f"**{entry.title}** (`{entry.name}`). {caption(entry, table)}\n")
            for format in FORMATS:
                files.append(out / f"{entry.name}.{format}")
                files[-1].write_bytes(render(figure, format))
        files.append(out / "captions.md")
        files[-1].write_text("\n".join(captions), encoding="utf-8")
    except OSError as error:
        raise BadTable(f"out is {out}, which cannot be written ({error.strerror})") from error
    return files


def write_all(paths: Sequence[Path], outs: Sequence[Path], *, width: float) -> Iterator[Path]:
    """Draw several tables, each into its folder, in as many processes as there are cores; yields the files.

    Raises: BadTable as :func:`write_figures`.
    """
    work = (
        joblib.delayed(write_figures)(path, out, width=width) for path, out in zip(paths, outs, strict=True)
    )
    parallel = joblib.Parallel(n_jobs=min(len(paths), joblib.cpu_count()), return_as="generator")
    for files in cast(Iterator[list[Path]], parallel(work)):
        yield from files
