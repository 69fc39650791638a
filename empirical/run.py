"""Run experiments: train, prune, attack, compute the theory, and judge whether they agree."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from joblib.externals.loky import get_reusable_executor

from empirical.attacks import fgs
from empirical.attacks.active import margins
from empirical.claims import judge, violations
from empirical.comparison import compare_linear, compare_relu
from empirical.datasets import Dataset, load
from empirical.deadline import NEVER, Deadline, OutOfTime
from empirical.ensembles import Ensemble, MLPEnsemble
from empirical.experiments.chains import (
    Chain,
    Place,
    base_networks,
    blocks,
    chain_is_done,
    run_chain,
    seeds_are_done,
)
from empirical.experiments.conditions import Bench
from empirical.experiments.specification import LINEAR_KINDS, Experiment
from empirical.mask_comparison import compare_masks, predict_masks
from empirical.measurement import measure, measured_rows
from empirical.provenance import commit, device_name, package_version
from empirical.results import Members, Rows, open_run, read_table, write_table
from empirical.sweep import run_unit, settings_id
from theory.types import InvalidInput

# From one unit of work done to what a progress bar says: the stage, and the networks' accuracy.
Advance = Callable[[str, str], None]
# Seconds between looks at the folder for units that other processes have finished.
_LOOK = 0.5
# Examples whose gradients are in memory at once.
_EXAMPLES = 250


@dataclass(frozen=True)
class Outcome:
    """What a run found: its rows per network, the judged claims, every case in which a theorem failed."""

    path: Path
    networks: pd.DataFrame
    claims: pd.DataFrame
    violations: pd.DataFrame
    settings: dict[str, object]


@dataclass(frozen=True)
class _Job:
    """One chain, or, without a condition, the dense networks of a block of seeds and the mask theorem."""

    experiment: Experiment
    chain: Chain
    place: Place
    device: str
    deadline: Deadline


def describe(experiments: Sequence[Experiment], device: torch.device) -> dict[str, object]:
    """All that decides a run's numbers, as plain JSON values: experiments, data, version, kind of device."""
    described: dict[str, object] = {}
    for experiment in experiments:
        described |= _flat(experiment.describe(), f"{experiment.name}.")
        described[f"{experiment.name}.data_sha256"] = _fingerprint(experiment.data)
    described |= {"version": package_version(), "device": device.type}
    return json.loads(json.dumps(described))


def _flat(table: Mapping[str, object], prefix: str) -> dict[str, object]:
    """Entries of tables inside tables under dotted names."""
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def default_folder(experiments: Sequence[Experiment], device: torch.device) -> Path:
    """results/<names>-<settings>: another folder for other settings, so that no run overwrites another."""
    names = "+".join(e.name for e in experiments)
    return Path("results") / f"{names}-{settings_id(describe(experiments, device))}"


def total_steps(experiments: Sequence[Experiment], device: torch.device) -> int:
    """How many units a run has, and so how often ``advance`` is called."""
    return sum(
        len(blocks(e, device)) * (len(e.conditions) * len(e.sparsities) + _speaks_of_masks(e))
        for e in experiments
    )


def run_experiments(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    device: torch.device,
    workers: int = 1,
    backend: str = "loky",
    advance: Advance = lambda stage, detail: None,
    deadline: Deadline = NEVER,
) -> Outcome:
    """Run all experiments into ``out``, continuing what an earlier run with the same settings left there.

    ``workers`` processes of joblib's ``backend`` share the chains; the rows do not depend on their number.
    ``advance`` hears of every finished unit. A file that is there is reused, never overwritten.
    Past the ``deadline`` it stops after the epoch or the measurement at hand.
    Raises: InvalidInput for bad data or settings, a folder that is unwritable, holds other results or a
    damaged file; TrainingDiverged if a network's weights become infinite; OutOfTime if it stopped before the
    end: the same call goes on.
    """
    if workers < 1:
        raise InvalidInput(f"workers is {workers}; use at least one process")
    for experiment in experiments:
        experiment_data(experiment)  # a class that is missing is an error before any work
    settings = describe(experiments, device)
    open_run(out, settings)
    provenance = {
        "settings": settings_id(settings),
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
        dense, rest = _jobs(experiments, out, settings, provenance, device, deadline)
        told = _Told([path for job in dense + rest for path in _paths(job)], advance)
        # One process trains dense networks when the first chain asks for them, so that seed follows on seed.
        for jobs in [[*rest, *dense]] if workers == 1 else [dense, rest]:
            _work(jobs, told, workers=workers, backend=backend)
            if deadline.over and not all(path.is_file() for job in rest + dense for path in _paths(job)):
                raise OutOfTime
        parts = [read_table(path) for job in rest + dense for path in _paths(job)]
        content = pa.concat_tables(parts).unify_dictionaries()
        write_table(final, content)
    networks = content.filter(pc.field("example").is_null()).to_pandas()
    return Outcome(final, networks, judge(networks), violations(content), settings)


def experiment_data(experiment: Experiment) -> Dataset:
    """The examples an experiment trains on and attacks. Raises: InvalidInput if they cannot be had."""
    data = load(experiment.data)
    if experiment.network.kind == "linear-binary":
        data = data.pair(*experiment.pair)
    return data.first(n_train=experiment.train_examples, n_test=experiment.test_examples)


def _jobs(
    experiments: Sequence[Experiment],
    out: Path,
    settings: dict[str, object],
    provenance: dict[str, str],
    device: torch.device,
    deadline: Deadline,
) -> tuple[list[_Job], list[_Job]]:
    """The dense networks that all start from, and the chains that start from them."""
    dense, rest = [], []
    for experiment in experiments:
        place = Place(out, experiment.name, settings_id(settings), provenance)
        for seeds in blocks(experiment, device):
            base, *chains = (Chain(c, seeds) for c in ("base", *experiment.conditions))
            dense.append(_Job(experiment, base, place, str(device), deadline))
            rest += [_Job(experiment, chain, place, str(device), deadline) for chain in chains]
    return dense, rest


def _paths(job: _Job) -> list[Path]:
    """The files with a job's rows."""
    if job.chain.condition == "base":
        return [job.place.unit(f"masks-{job.chain.name}")] if _speaks_of_masks(job.experiment) else []
    return [job.place.level_unit(job.chain, level) for level in range(len(job.experiment.sparsities))]


def _work(jobs: Sequence[_Job], told: _Told, *, workers: int, backend: str) -> None:
    """Do all jobs, several at once where there are several workers."""
    told.look()
    if workers == 1:
        for job in jobs:
            if not _do(job, told.look):
                return
        return
    jobs = [job for job in jobs if not _is_done(job)]
    with told.watching():
        parallel = joblib.Parallel(n_jobs=workers, backend=backend, return_as="generator_unordered")
        try:
            calls = (joblib.delayed(_do_on_one_core)(job, first=i < workers) for i, job in enumerate(jobs))
            for _ in parallel(calls):
                pass
        finally:
            if backend == "loky":  # its processes would wait for more work, each with its copy of the data
                get_reusable_executor().shutdown(wait=True)
    told.look()


def _do_on_one_core(job: _Job, *, first: bool) -> None:
    """Do a job unless time is over; a process's first one in any case, so that every call gets on."""
    torch.set_num_threads(1)
    if first or not job.deadline.over:
        _do(job, lambda: None)


def _do(job: _Job, after_step: Callable[[], None]) -> bool:
    """Do one job, or as much of it as there is time for; whether there is time for more."""
    try:
        for _ in _steps(job):
            after_step()
            job.deadline.check()
    except OutOfTime:
        return False
    return True


def _steps(job: _Job) -> Iterator[None]:
    """Do one job, step by step; what it finds is in files."""
    experiment, is_base = job.experiment, job.chain.condition == "base"
    if _is_done(job):
        return
    data = _cached_data(experiment)
    bench = Bench(experiment, data, job.chain.seeds, torch.device(job.device), job.deadline)
    if not is_base:
        yield from run_chain(bench, job.chain, job.place, level_rows)
        return
    networks = base_networks(bench, job.place)
    for path in _paths(job):
        run_unit(path, lambda: _mask_rows(job, networks, data), job.place.provenance)
    yield


def _is_done(job: _Job) -> bool:
    """Whether a job's rows are on disk; dense networks are no longer needed once all chains' are."""
    if job.chain.condition != "base":
        return chain_is_done(job.experiment, job.chain, job.place)
    return all(path.is_file() for path in _paths(job)) and seeds_are_done(
        job.experiment, job.chain.seeds, job.place
    )


@functools.lru_cache(maxsize=1)
def _cached_data(experiment: Experiment) -> Dataset:
    return experiment_data(experiment)


def level_rows(experiment: Experiment, data: Dataset, members: Members, networks: Ensemble) -> list[Rows]:
    """What is measured of the networks at one sparsity, and what the theory says of them."""
    measured = measure(networks, data, eps=experiment.eps, attacks=experiment.attacks, box=experiment.box)
    found = measured_rows(members, measured, data, eps=experiment.eps)
    found += further_steps(experiment, data, members, networks)
    if not isinstance(networks, MLPEnsemble) or experiment.box:
        return found
    if experiment.network.kind in LINEAR_KINDS:
        return found + compare_linear(members, networks, measured, data, eps=experiment.eps)
    return found + compare_relu(members, networks, measured, data)


def further_steps(experiment: Experiment, data: Dataset, members: Members, networks: Ensemble) -> list[Rows]:
    """Accuracy on the fast gradient sign's points at the further steps, in float64, as rows."""
    like = networks.masks[0]
    exact = networks.to(dtype=torch.float64, device=like.device)
    x, y = torch.tensor(data.x_test, device=like.device), torch.tensor(data.y_test, device=like.device)
    found = []
    for eps in experiment.further_eps:
        for method, box in (("fgs", None), ("fgs in the box", data.box)):
            right = [
                margins(exact.logits(fgs(exact, some_x, some_y, eps=eps, box=box)), some_y) > 0
                for some_x, some_y in zip(x.split(_EXAMPLES), y.split(_EXAMPLES), strict=True)
            ]
            share = torch.cat(right, dim=1).double().mean(1).cpu().numpy()
            rows = {"quantity": "fgs_curve", "method": method, "kind": "measured", "norm": "linf", "eps": eps}
            found.append(Rows(members, share, **rows))
    return found


def _speaks_of_masks(experiment: Experiment) -> bool:
    """Whether the random-mask theorem is held against this experiment's dense networks."""
    return experiment.network.kind == "mlp" and "random" in experiment.conditions


def _mask_rows(job: _Job, networks: Ensemble, data: Dataset) -> list[Rows]:
    """The random-mask theorem on the dense networks."""
    assert isinstance(networks, MLPEnsemble)
    count = len(job.chain.seeds)
    members = Members(
        data.name, "mlp", ["dense"] * count, [0.0] * count, [0.0] * count, list(job.chain.seeds)
    )
    experiment, alphas = job.experiment, job.experiment.sparsities
    rungs = compare_masks(members, networks, data, alphas, pair=experiment.pair, copies=experiment.masks)
    return rungs + predict_masks(members, networks, data, alphas)


def _fingerprint(name: str) -> str:
    """A hash of all examples of a data set."""
    data = load(name)
    fingerprint = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        fingerprint.update(np.ascontiguousarray(array).tobytes())
    return fingerprint.hexdigest()


class _Told:
    """Which units are on disk, as far as ``advance`` has been told."""

    def __init__(self, paths: Sequence[Path], advance: Advance) -> None:
        self._waiting, self._advance = list(paths), advance

    def look(self) -> None:
        """Tell of every unit that has appeared since, whichever process wrote it."""
        for path in [path for path in self._waiting if path.is_file()]:
            self._waiting.remove(path)
            self._advance(*_stage(path))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again while the work is done elsewhere."""
        stop = threading.Event()

        def keep_looking() -> None:
            while not stop.wait(_LOOK):
                self.look()

        watcher = threading.Thread(target=keep_looking, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _stage(path: Path) -> tuple[str, str]:
    """The stage and the accuracy that a unit's file speaks of."""
    rows = read_table(path)
    first = rows.slice(0, 1).to_pylist()[0]
    clean = (pc.field("quantity") == "accuracy") & (pc.field("method") == "clean")
    accuracy = rows.filter(clean)["value"].to_numpy()
    if not len(accuracy):
        return f"{first['family']} random masks", ""
    mean = accuracy.mean()
    return f"{first['family']} {first['pruning']}", f"sparsity {first['sparsity']:.3g}, accuracy {mean:.3f}"
