"""The main job: train, prune, attack, compute the theory, and judge whether they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from empirical.claims import judge, violations
from empirical.comparison import compare_linear, compare_masks, compare_relu
from empirical.datasets import Dataset, load
from empirical.ensembles import MLPEnsemble
from empirical.experiment import FAMILIES, Settings, family_data, levels, package_version
from empirical.measurement import measure, measured_rows
from empirical.provenance import choose_device as choose_device
from empirical.provenance import commit, device_name
from empirical.results import Members, Rows, open_run, read_table, write_table
from empirical.sweep import run_unit, settings_id, unit_path
from theory.types import InvalidInput


@dataclass(frozen=True)
class Outcome:
    """What a run found: its rows per network, the judged claims, every case in which a theorem failed."""

    path: Path
    networks: pd.DataFrame
    claims: pd.DataFrame
    violations: pd.DataFrame
    settings: dict[str, object]


def describe(settings: Settings, data: Dataset, device: torch.device) -> dict[str, object]:
    """All that decides a run's numbers, as plain JSON values: settings, data, version, kind of device."""
    return settings.describe(data) | {"device": device.type}


def default_folder(settings: Settings, data: Dataset, device: torch.device) -> Path:
    """results/<data>-<settings>: another folder for other settings, so that no run overwrites another."""
    return Path("results") / f"{data.name}-{settings_id(describe(settings, data, device))}"


def total_steps(settings: Settings) -> int:
    """How often ``advance`` is called in a run: once per epoch, per measured level, and for the masks."""
    depth = len(settings.sparsities)
    epochs = settings.first.epochs + (depth - 1) * settings.retrain.epochs
    return len(FAMILIES) * (epochs + depth) + 1


def verify(
    settings: Settings,
    out: Path,
    *,
    device: torch.device,
    advance: Callable[[str], None] = lambda stage: None,
) -> Outcome:
    """Run everything into ``out``, continuing what an earlier run with the same settings left there.

    ``advance`` is called with the name of the stage at every step (see :func:`total_steps`). A file that is
    there is reused, never overwritten.
    Raises: InvalidInput for bad data or settings, a folder that is unwritable, holds other results or a
    damaged file; TrainingDiverged if a network's weights become infinite.
    """
    data = load(settings.data)
    described = describe(settings, data, device)
    for family in FAMILIES:
        family_data(settings, data, family)  # a class that is missing is an error before any work
    open_run(out, described)
    provenance = {
        "settings": settings_id(described),
        "version": package_version(),
        "commit": commit(),
        "device": device_name(device),
        "dtype": "float64",
    }
    final = out / "results.parquet"
    if final.is_file():
        content = read_table(final)
        if set(content["settings"].unique().to_pylist()) != {provenance["settings"]}:
            raise InvalidInput(
                f"results file {final} belongs to a run with other settings; choose a new folder"
            )
    else:
        parts = []
        for family in FAMILIES:
            parts += _family(settings, data, family, out, described, provenance, device, advance)
        content = pa.concat_tables(parts).unify_dictionaries()
        write_table(final, content)
    networks = content.filter(pc.field("example").is_null()).to_pandas()
    return Outcome(final, networks, judge(networks), violations(content), described)


def _family(
    settings: Settings,
    data: Dataset,
    family: str,
    out: Path,
    described: dict[str, object],
    provenance: dict[str, str],
    device: torch.device,
    advance: Callable[[str], None],
) -> list[pa.Table]:
    """All units of one family: a file per sparsity, and one for the random-mask theorem (mlp)."""
    problem = family_data(settings, data, family)
    trained = levels(
        settings,
        data,
        family,
        checkpoints=out / "checkpoints",
        device=device,
        after_epoch=lambda: advance(f"train {family}"),
    )
    parts = []
    for level, (members, networks) in enumerate(trained):

        def unit(members: Members = members, networks: MLPEnsemble = networks) -> list[Rows]:
            return _level_rows(members, networks, problem, eps=settings.eps)

        parts.append(run_unit(unit_path(out / "units", described, family, f"{level:02d}"), unit, provenance))
        advance(f"measure {family}")
        if family == "mlp" and level == 0:

            def masks_unit(members: Members = members, networks: MLPEnsemble = networks) -> list[Rows]:
                return _mask_rows(settings, members, networks, problem)

            parts.append(run_unit(unit_path(out / "units", described, "masks"), masks_unit, provenance))
            advance("random masks")
    return parts


def _level_rows(members: Members, networks: MLPEnsemble, problem: Dataset, *, eps: float) -> list[Rows]:
    measured = measure(networks, problem, eps=eps)
    found = measured_rows(members, measured, problem, eps=eps)
    if len(networks.weights) == 1:
        return found + compare_linear(members, networks, measured, problem, eps=eps)
    return found + compare_relu(members, networks, measured, problem)


def _mask_rows(settings: Settings, members: Members, networks: MLPEnsemble, problem: Dataset) -> list[Rows]:
    """The random-mask theorem on the dense networks, which come first among the members."""
    dense = Members(
        members.dataset,
        members.family,
        *(
            getattr(members, name)[: settings.seeds]
            for name in ("pruning", "sparsity", "achieved_sparsity", "seed")
        ),
    )
    return compare_masks(
        dense,
        networks.select(range(settings.seeds)),
        problem,
        settings.sparsities,
        pair=settings.pair,
        copies=settings.masks,
    )
