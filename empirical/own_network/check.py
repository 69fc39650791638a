"""Everything about one network of the user's own: what is certain, what attacks find, what more pruning does.

The parts are those of the commands ``bounds`` and ``measure``, in folders of these names, and
:mod:`empirical.own_network.further_pruning`; ``docs/check.md`` explains the page that is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from empirical.datasets import Dataset, Examples
from empirical.ensembles import Ensemble, MLPEnsemble, from_networks
from empirical.own_network import accuracies, against, bounds, measuring, problem
from empirical.own_network.bound_rows import ceiling_rows
from empirical.own_network.further_pruning import check_levels, units
from empirical.own_network.loading import Network
from empirical.own_network.mask_bounds import unmaskable
from empirical.own_network.preparation import prepare
from empirical.own_network.problem import Problem
from empirical.own_network.sandwiches import Sandwich, sandwiches
from empirical.results import NORMS, open_run, read_final, read_table, settings_id, write_table
from empirical.runs.provenance import commit, device_name, package_version
from empirical.runs.sweep import run_unit, unit_path
from theory.types import InvalidInput

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9)
# What is said of a network wherever the theory says nothing of it, but where it is said why.
NOT_COVERED = "the theory does not cover this network"


@dataclass(frozen=True)
class Request:
    """What to look at: the first ``examples``, by which attacks, and further pruning to which levels.

    ``removed`` are shares of the weights that are still there. ``crown`` is the number of examples that are
    certified by linear relaxation; None: as many as about a minute allows. ``eps``, ``box`` and ``shape`` as
    in :class:`empirical.own_network.measuring.Request`. Raises: InvalidInput naming the entry out of range.
    """

    examples: int = 100
    attacks: tuple[str, ...] = ("fgs", "deepfool", "fmn", "fmn-init")
    removed: tuple[float, ...] = LEVELS
    crown: int | None = None
    eps: float = 0.1
    box: tuple[float, float] | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed", check_levels(self.removed))
        self.attacking()
        self.proving()

    def attacking(self) -> measuring.Request:
        """The part that ``measure`` answers."""
        return measuring.Request(
            examples=self.examples, attacks=self.attacks, eps=self.eps, box=self.box, shape=self.shape
        )

    def proving(self) -> problem.Request:
        """The part that ``bounds`` answers."""
        return problem.Request(examples=self.examples, shape=self.shape, crown=self.crown)


@dataclass(frozen=True)
class Findings:
    """All rows, and why there are none where a part does not apply.

    ``bounds`` is a table of ``bounds`` or the reason why nothing could be proved; ``further`` is about whole
    networks; ``crown`` says how many examples linear relaxation certified, ``unmasked`` why no bound speaks
    of random masks and ``moments`` why these could not be predicted, empty where they were. ``tested``
    examples tell accuracies; ``constant`` is that of the best constant decision on them. ``radii`` are what
    is known of them in each norm.
    """

    network: Network
    bounds: pd.DataFrame | str
    measured: pd.DataFrame
    radii: list[Sandwich]
    further: pd.DataFrame
    crown: int
    unmasked: str
    moments: str
    tested: int
    constant: float
    reference: against.Reference | None
    settings: dict[str, object]
    provenance: dict[str, str]


@dataclass(frozen=True)
class _Subject:
    """The network in the forms that the parts take, and the examples; ``problem`` may be a reason instead."""

    network: Network
    ensemble: Ensemble
    data: Dataset
    tested: Examples
    problem: Problem | str

    @property
    def layers(self) -> MLPEnsemble | None:
        if isinstance(self.problem, str) or self.problem.layers is None:
            return None
        return from_networks([self.problem.layers])

    def affordable(self, request: Request) -> int:
        """How many examples linear relaxation certifies: those asked for, else what a minute allows."""
        if isinstance(self.problem, str):
            return 0
        wanted = request.crown
        most = problem.affordable(self.problem, request.proving()) if wanted is None else wanted
        return min(len(self.data.y_test), most)

    def ceilings(self, proved: pd.DataFrame | str) -> pd.DataFrame:
        """Rows of the universal ceiling, which asks nothing of the network: proved already, or computed."""
        if isinstance(proved, pd.DataFrame):
            return proved
        x, y = self.data.x_test, self.data.y_test
        right = accuracies.correct(self.ensemble, self.tested)[0].numpy()[: len(y)]
        return pd.DataFrame([asdict(row) for p in NORMS for row in ceiling_rows(x, y, right, p=p)])

    def side(self, radii: list[Sandwich], measured: pd.DataFrame) -> against.Side:
        """What a comparison takes of it."""
        right = accuracies.correct(self.ensemble, self.tested)[0].numpy()
        return against.Side(self.network, right, radii, measured)


def default_folder(network: Network) -> Path:
    """results/check-<model name>."""
    return Path("results") / f"check-{Path(network.name).stem}"


def total_steps(request: Request, *, dense: bool = False) -> int:
    """How often ``advance`` is called at most; ``dense`` says whether there is a reference."""
    each = bounds.total_steps(request.proving()) + len(request.attacks)
    return each * (1 + dense) + 2 * len(request.removed) + 3


def check(
    network: Network,
    data: Examples,
    request: Request,
    out: Path,
    *,
    device: torch.device,
    dense: Network | None = None,
    advance: Callable[[str], None] = lambda stage: None,
) -> Findings:
    """Do all parts, into ``out``; what is there already is only read.

    A network with an operation that the theory does not cover is attacked and pruned all the same. ``dense``
    is a reference to compare it with, which is proved and attacked too, in a folder of ``out``/against.
    Raises: InvalidInput for a network that does not take the data, bad labels, another number of classes, or
    a folder that is unwritable, holds other results or a damaged file.
    """
    subject = _subject(network, data, request, device)
    reference = None if dense is None else _subject(dense, data, request, device)
    if reference is not None and reference.data.classes != subject.data.classes:
        raise InvalidInput(
            f"against is {reference.network.name}, which has {reference.data.classes} classes; "
            f"{subject.network.name} has {subject.data.classes}"
        )
    sides = [part for part in (subject, reference) if part is not None and isinstance(part.problem, Problem)]
    request = replace(request, crown=min((part.affordable(request) for part in sides), default=0))
    settings = _describe(subject, request, device)
    open_run(out, settings, parts=("units", "figures", "bounds", "measure"))
    caps = {norm: subject.data.diameter(p) for p, norm in NORMS.items()}
    proved, measured = _prove_and_attack(subject, data, request, out, device, advance)
    radii = sandwiches(measured, proved, subject.ceilings(proved), caps)
    provenance = {
        "settings": settings_id(settings),
        "version": package_version(),
        "commit": commit(),
        "device": device_name(device),
        "dtype": "float64",
    }
    further = _further(subject, request, out, provenance, advance)
    beside = None
    if reference is not None:
        folder = out / "against" / Path(reference.network.name).stem
        known, attacked = _prove_and_attack(reference, data, request, folder, device, advance)
        before = reference.side(sandwiches(attacked, known, reference.ceilings(known), caps), attacked)
        beside = against.compare(before, subject.side(radii, measured), folder, provenance=provenance)
    return Findings(
        subject.network,
        proved,
        measured,
        radii,
        further[further["example"].isna()],
        subject.affordable(request),
        NOT_COVERED if isinstance(subject.problem, str) else unmaskable(subject.problem.graph),
        "" if subject.layers is not None else _no_moments(subject.problem),
        len(subject.tested.y),
        float(np.bincount(subject.tested.y).max()) / len(subject.tested.y),
        beside,
        settings,
        provenance,
    )


def _subject(network: Network, data: Examples, request: Request, device: torch.device) -> _Subject:
    network = prepare(network, data, request.shape)
    ensemble = measuring.ensemble_of(network, data.first(request.examples), device)
    problem: Problem | str
    try:
        problem = Problem.of(network, data, request.proving(), device=device)
    except InvalidInput as error:
        problem = str(error)
    found = measuring.attack_problem(data, ensemble, request.attacking())
    return _Subject(network, ensemble, found, accuracies.enough(data, request.examples), problem)


def _prove_and_attack(
    subject: _Subject,
    data: Examples,
    request: Request,
    out: Path,
    device: torch.device,
    advance: Callable[[str], None],
) -> tuple[pd.DataFrame | str, pd.DataFrame]:
    """The tables of ``bounds``, or why there is none, and of ``measure``, in folders of these names."""
    network, proved = subject.network, subject.problem
    if not isinstance(proved, str):
        asked = replace(request.proving(), crown=subject.affordable(request))
        proved = bounds.bounds(network, data, asked, out / "bounds", device=device, advance=advance).rows
    asked = request.attacking()
    attacked = measuring.measure_network(
        network, data, asked, out / "measure", device=device, advance=advance
    )
    return proved, read_table(attacked.path).to_pandas()


def _no_moments(problem: Problem | str) -> str:
    if isinstance(problem, str):
        return NOT_COVERED
    return "moment propagation is done for fully connected networks only, each layer with weights of its own"


def _further(
    subject: _Subject,
    request: Request,
    out: Path,
    provenance: dict[str, str],
    advance: Callable[[str], None],
) -> pd.DataFrame:
    """The rows of further pruning: read from ``further_pruning.parquet``, or computed unit by unit."""
    final = out / "further_pruning.parquet"
    if final.is_file():
        return read_final(final, settings=provenance["settings"]).to_pandas()
    parts = []
    for name, compute in units(
        subject.ensemble,
        subject.layers,
        subject.data,
        subject.tested,
        request.removed,
        family=Path(subject.network.name).stem,
        eps=request.eps,
        box=request.box is not None,
    ):
        advance(f"pruned further, {name}")
        parts.append(run_unit(unit_path(out / "units", provenance["settings"], name), compute, provenance))
    content = pa.concat_tables(parts).unify_dictionaries()
    write_table(final, content)
    return content.to_pandas()


def _describe(subject: _Subject, request: Request, device: torch.device) -> dict[str, object]:
    """All that decides the numbers, as plain JSON values."""
    described = asdict(request) | {
        **subject.network.settings,
        "data": subject.data.name,
        "data_sha256": measuring.fingerprint(subject.data.x_test, subject.data.y_test),
        "tested": len(subject.tested.y),
        "tested_sha256": measuring.fingerprint(subject.tested.x, subject.tested.y),
        "version": package_version(),
        "device": device.type,
    }
    return json.loads(json.dumps(described))
