"""Attack a network of the user's own: the measuring counterpart of ``bounds``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.export import ExportedProgram

from empirical.datasets import Dataset, Examples
from empirical.ensembles import Ensemble, from_modules, from_stack
from empirical.ensembles.programs import ProgramModule
from empirical.experiments.specification import ATTACKS
from empirical.measurement import measure, measured_rows, radius_rows
from empirical.own_network.loading import Network
from empirical.own_network.preparation import prepare
from empirical.own_network.trial import check_attackable
from empirical.results import NORMS, Members, Rows, open_run, read_final, settings_id, table, write_table
from empirical.runs.provenance import commit, device_name, package_version
from empirical.runs.sweep import run_unit, unit_path
from theory.types import InvalidInput, check_labels

# Quantities of which every attack has its own; the others do not depend on the attack.
_OF_ATTACKS = ("radius", "mean_radius", "mean_squared_distance", "capped", "robust_accuracy")


@dataclass(frozen=True)
class Request:
    """What to measure: the first ``examples``, by which attacks, robust accuracy at ``eps``.

    ``box`` says where attacks must stay, and what clipped FGS clips to; None: unclipped, and a clipped FGS
    clips to [0, 1] if the data lies in it, else to the data's own range.
    Raises: InvalidInput naming the entry that is out of range.
    """

    examples: int = 1000
    attacks: tuple[str, ...] = ("fgs", "deepfool", "ddn", "fmn", "fmn-init")
    eps: float = 0.1
    box: tuple[float, float] | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise InvalidInput(f"examples is {self.examples}; use at least one")
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise InvalidInput(
                f"attacks is {list(self.attacks)}; choose different ones of {', '.join(ATTACKS)}"
            )
        if not 0 < self.eps < float("inf"):
            raise InvalidInput(f"eps is {self.eps}; a perturbation has a positive, finite size")
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise InvalidInput(f"shape is {self.shape}; give the sides of one example, each >= 1")
        if self.box is not None and not self.box[0] < self.box[1]:
            raise InvalidInput(f"box is {self.box}; give its lower end first")


@dataclass(frozen=True)
class Outcome:
    """Where the rows are, those about the whole network, and the settings."""

    path: Path
    rows: pd.DataFrame
    settings: dict[str, object]


def default_folder(network: Network) -> Path:
    """results/measure-<model name>."""
    return Path("results") / f"measure-{Path(network.name).stem}"


def measure_network(
    network: Network,
    data: Examples,
    request: Request,
    out: Path,
    *,
    device: torch.device,
    advance: Callable[[str], None] = lambda stage: None,
) -> Outcome:
    """Attack the network at the examples, into ``out``; what is there already is only read.

    Raises: InvalidInput for a network that does not take the data, bad labels, or a folder that is
    unwritable, holds other results or a damaged file.
    """
    network = prepare(network, data, request.shape)
    examples = data.first(request.examples)
    ensemble = ensemble_of(network, examples, device)
    problem = attack_problem(data, ensemble, request)
    settings = _describe(network, examples, request, device)
    open_run(out, settings, parts=("units",))
    final = out / "measure.parquet"
    provenance = {
        "settings": settings_id(settings),
        "version": package_version(),
        "commit": commit(),
        "device": device_name(device),
        "dtype": "float64",
    }
    if final.is_file():
        content = read_final(final, settings=provenance["settings"])
    else:
        sparsity = [network.sparsity]
        members = Members(examples.name, Path(network.name).stem, ["given"], sparsity, sparsity, [0])
        parts = []
        for attack in request.attacks:
            advance(attack)

            def unit(attack: str = attack) -> list[Rows]:
                boxed = request.box is not None
                measured = measure(ensemble, problem, eps=request.eps, attacks=(attack,), box=boxed)
                return measured_rows(members, measured, problem, eps=request.eps)

            parts.append(run_unit(unit_path(out / "units", provenance["settings"], attack), unit, provenance))
        content = _joined(parts, members, problem, request, provenance)
        write_table(final, content)
    rows = content.to_pandas()
    return Outcome(final, rows[rows["example"].isna()], settings)


def _joined(
    parts: list[pa.Table],
    members: Members,
    problem: Dataset,
    request: Request,
    provenance: dict[str, str],
) -> pa.Table:
    """The rows of all attacks, those that they share once, and the best of all attacks."""
    of_attack = pc.field("quantity").isin(_OF_ATTACKS)
    rows = [part.filter(of_attack & (pc.field("method") != "best")) for part in parts]
    rows.append(parts[0].filter(~of_attack))
    each = pa.concat_tables(rows).filter(pc.field("quantity") == "radius").to_pandas()
    best = []
    for p, norm in NORMS.items():
        own = each[each["norm"] == norm]
        if len(own):
            smallest = own.groupby("example")["value"].min().to_numpy()[None]
            best += radius_rows(members, smallest, problem, p=p, method="best", eps=request.eps)
    return pa.concat_tables([*rows, table(best, provenance=provenance)]).unify_dictionaries()


def ensemble_of(network: Network, examples: Examples, device: torch.device) -> Ensemble:
    """A prepared network as an ensemble of one in float64, in the first form that can be attacked.

    These are its module; traced; traced without what cuts gradients; the module that was traced.
    Raises: InvalidInput if it does not take the examples, or as :func:`check_attackable`.
    """
    forms: list[Callable[[], nn.Module]] = []
    if isinstance(network.module, nn.Module):
        forms.append(partial(_itself, network.module))
    program = network.module if isinstance(network.module, ExportedProgram) else network.program
    if program is not None:
        forms += [partial(ProgramModule, program, cut=cut) for cut in (True, False)]
    if network.given is not None:
        forms.append(partial(_itself, network.given))
    x = torch.tensor(examples.x.reshape(len(examples.x), -1), device=device)
    failed = None
    for form in forms:
        try:
            module = form()
            found = from_stack(module) or from_modules([module], shape=network.shape or examples.shape)
            found = found.to(dtype=torch.float64, device=device)
            check_attackable(network.name, found, x)
        except InvalidInput as error:
            failed = failed or error
        else:
            return found
    assert failed is not None  # there is a module
    raise failed


def _itself(module: nn.Module) -> nn.Module:
    return module


def attack_problem(data: Examples, ensemble: Ensemble, request: Request) -> Dataset:
    """The first examples as the network's test data.

    Raises: InvalidInput for other features, a box that does not hold the examples, or labels, of all
    examples, that are no class.
    """
    check_labels("y_test", data.y, n=len(data.y), classes=ensemble.classes)
    examples = data.first(request.examples)
    x = examples.x.reshape(len(examples.x), -1)
    if x.shape[1] != ensemble.inputs:
        raise InvalidInput(f"data has {x.shape[1]} features; the network takes {ensemble.inputs}")
    low, high = float(x.min()), float(x.max())
    if request.box and not request.box[0] <= low <= high <= request.box[1]:
        raise InvalidInput(
            f"box is {request.box}; the examples span [{low:g}, {high:g}], and attacks start at them"
        )
    box = request.box or ((0.0, 1.0) if 0 <= low and high <= 1 else (low, high))
    classes = np.arange(ensemble.classes)
    some = np.resize(x, (ensemble.classes, x.shape[1]))
    return Dataset(examples.name, some, classes, x, examples.y, ensemble.classes, box=box)


def _describe(
    network: Network, examples: Examples, request: Request, device: torch.device
) -> dict[str, object]:
    described = asdict(request) | {
        **network.settings,
        "data": examples.name,
        "data_sha256": fingerprint(examples.x, examples.y),
        "version": package_version(),
        "device": device.type,
    }
    return json.loads(json.dumps(described))


def fingerprint(x: np.ndarray, y: np.ndarray) -> str:
    """SHA-256 of the examples and their labels."""
    digest = hashlib.sha256()
    for array in (x, y):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
