"""Units of work: each writes one file, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pyarrow as pa

from empirical.results import Rows, read_table, table, write_table
from empirical.runs.locations import Location


def unit_path(folder: Location, settings: str, name: str) -> Location:
    """Where a unit of the run with these settings is stored: its name and their common hash."""
    digest = hashlib.sha256(f"{settings} {name}".encode()).hexdigest()[:12]
    return folder / f"{name}-{digest}.parquet"


def run_unit(path: Location, compute: Callable[[], list[Rows]], provenance: dict[str, str]) -> pa.Table:
    """The unit's rows: read from ``path`` if they are there, else computed and written there.

    Raises: InvalidInput if the file is there but damaged or of another schema.
    """
    if path.is_file():
        return read_table(path)
    content = table(compute(), provenance=provenance)
    write_table(path, content)
    return content
