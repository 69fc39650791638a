"""The ladder of the theory for one network of the user's own: certificates, constants, masks, ceilings.

Every number is one row of a table like that of a run, written unit by unit, so that a killed run goes on.
Nothing is trained or attacked here; ``docs/bounds.md`` explains the columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch

from empirical.datasets import Examples
from empirical.own_network.bound_rows import Row, units
from empirical.own_network.loading import Network
from empirical.own_network.mask_bounds import unmaskable
from empirical.own_network.measuring import fingerprint
from empirical.own_network.preparation import prepare
from empirical.own_network.problem import Problem, Request, minutes_each
from empirical.results import BOUNDS, NORMS, open_run, read_final, read_table, settings_id, write_table
from empirical.runs.locations import Location
from empirical.runs.provenance import commit, device_name, package_version
from empirical.runs.sweep import unit_path

# Minutes of one core from which on linear relaxation is announced, and the units of the announcement.
_LONG = 5
_UNITS = {"days": 1440, "hours": 60, "minutes": 1}


@dataclass(frozen=True)
class Outcome:
    """Where the table is, its rows, and the settings they were computed with."""

    path: Path
    rows: pd.DataFrame
    settings: dict[str, object]


def default_folder(network: Network) -> Path:
    """results/bounds-<model name>."""
    return Path("results") / f"bounds-{Path(network.name).stem}"


def total_steps(request: Request) -> int:
    """How often ``advance`` is called: once per unit of work."""
    return 2 + 2 * len(request.norms)


def bounds(
    network: Network,
    data: Examples,
    request: Request,
    out: Path,
    *,
    device: torch.device,
    advance: Callable[[str], None] = lambda stage: None,
    note: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Everything the theory says of the network at the examples, in ``out``; a finished run is only read.

    ``note`` is told why there is nothing about random masks where there is not, and where linear relaxation
    will take long, and what asks for less.

    Raises: InvalidInput for a network that does not fit the data or is not understood, bad labels or pair, or
    a folder that is unwritable, holds other results or a damaged file.
    """
    network = prepare(network, data, request.shape)
    problem = Problem.of(network, data, request, device=device)
    pair = problem.pair(request)
    request = replace(request, pair=pair)
    described = _describe(problem, request, device)
    open_run(out, described, parts=("units", "figures"))
    if reason := unmaskable(problem.graph):
        note(f"Note: no bounds of random masks: {reason}")
    final = out / "bounds.parquet"
    if final.is_file():
        content = read_final(final, settings=settings_id(described), schema=BOUNDS)
    else:
        provenance = {
            "settings": settings_id(described),
            "model": network.name,
            "model_sha256": network.sha256,
            "data": data.name,
            "version": package_version(),
            "commit": commit(),
            "device": device_name(device),
            "dtype": request.dtype,
            "examples": len(problem.y),
        }
        _tell_of_time(problem, request, note)
        parts = []
        for name, compute in units(problem, request, pair):
            advance(name)
            parts.append(_unit(unit_path(out / "units", settings_id(described), name), compute, provenance))
        content = pa.concat_tables(parts).unify_dictionaries()
        write_table(final, content)
    return Outcome(final, content.to_pandas(), described)


def _tell_of_time(problem: Problem, request: Request, note: Callable[[str], None]) -> None:
    count = len(problem.y[: request.crown])
    minutes = count * minutes_each(problem, request)
    if minutes < _LONG:
        return
    unit = next(unit for unit, least in _UNITS.items() if minutes >= 2 * least)
    duration = f"{minutes / _UNITS[unit]:.0f} {unit}"
    note(
        f"Note: linear relaxation of {count} examples may take {duration} of one core; "
        "--crown N asks for the first N examples alone, --crown 0 for none"
    )


def _describe(problem: Problem, request: Request, device: torch.device) -> dict[str, object]:
    """All that decides the numbers, as plain JSON values."""
    network = problem.network
    described = asdict(replace(request, shape=problem.graph.nodes[0].shape)) | {
        "norms": [NORMS[p] for p in request.norms],
        **network.settings,
        "data": problem.examples.name,
        "data_sha256": fingerprint(problem.examples.x, problem.examples.y),
        "version": package_version(),
        "device": device.type,
    }
    return json.loads(json.dumps(described))


def _unit(path: Location, compute: Callable[[], list[Row]], provenance: dict[str, object]) -> pa.Table:
    """The unit's rows: read from ``path`` if they are there, else computed, timed and written there."""
    if path.is_file():
        return read_table(path, schema=BOUNDS)
    started = time.perf_counter()
    rows = compute()
    run = provenance | {"seconds": time.perf_counter() - started}
    content = pa.Table.from_pylist([run | asdict(row) for row in rows], schema=BOUNDS)
    write_table(path, content)
    return content
