"""One worker's share of a run: a chain of networks, or the dense networks that chains start from.

A job is sent to another process, perhaps of another machine, and what it finds is in files of the run's
folder, so it makes sure that it has the same package and the same data as the command that sent it.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from empirical.attacks import fgs
from empirical.attacks.active import margins
from empirical.comparison import compare_linear, compare_relu
from empirical.datasets import Dataset, load
from empirical.ensembles import Ensemble, MLPEnsemble, ModuleEnsemble
from empirical.experiments.chains import (
    Chain,
    NetworksLost,
    Place,
    base_networks,
    chain_is_done,
    clear_dense,
    mask_unit,
    run_chain,
    seeds_are_done,
    speaks_of_masks,
)
from empirical.experiments.conditions import Bench, Tell
from empirical.experiments.specification import LINEAR_KINDS, Experiment
from empirical.local_comparison import compare_locally
from empirical.mask_comparison import compare_masks, predict_masks
from empirical.measurement import measure, measured_rows
from empirical.results import Members, Rows
from empirical.runs.deadline import NEVER, Deadline, OutOfTime
from empirical.runs.locations import Location
from empirical.runs.progress import Notes
from empirical.runs.provenance import choose_device, commit, device_name, package_version
from empirical.runs.sweep import run_unit
from theory.types import InvalidInput

# Examples whose gradients are in memory at once.
_EXAMPLES = 250
_COMMIT = commit()  # of the code in memory: the source tree of a worker that lives long may change


@dataclass(frozen=True)
class Job:
    """One chain, or, of condition "base", the dense networks of a block of seeds and the mask theorem.

    ``first`` is one that is begun even when the deadline is over, so that every call gets on. ``notes`` is a
    folder of the command's machine, where a worker notes what it does.
    """

    experiment: Experiment
    chain: Chain
    place: Place
    device: str
    version: str
    data_sha256: str
    deadline: Deadline = NEVER
    first: bool = False
    notes: Path | None = None

    @property
    def base(self) -> bool:
        """Whether it is the dense networks that chains start from."""
        return self.chain.condition == "base"

    @property
    def stage(self) -> str:
        """What is done, in words."""
        kind = self.experiment.network.kind
        if not self.base:
            return f"{kind} {self.chain.condition}"
        masks = " and random masks" if speaks_of_masks(self.experiment) else ""
        return f"{kind} networks to begin with{masks}"

    @property
    def block(self) -> tuple[str, tuple[int, ...]]:
        """The experiment and the seeds: what jobs have in common that start from the same dense networks."""
        return self.experiment.name, self.chain.seeds

    def units(self) -> list[Location]:
        """The files with its rows."""
        if self.base:
            return [mask_unit(self.chain, self.place)] if speaks_of_masks(self.experiment) else []
        levels = range(len(self.experiment.sparsities))
        return [self.place.level_unit(self.chain, level) for level in levels]

    def finished(self) -> bool:
        """Whether there is nothing left to do; nothing needs dense networks once all chains are done."""
        if not self.base:
            return chain_is_done(self.experiment, self.chain, self.place)
        stored = self.place.checkpoint(self.chain, 0).is_file()
        if not all(path.is_file() for path in self.units()):
            return False
        done = seeds_are_done(self.experiment, self.chain.seeds, self.place)
        return stored != done if self.experiment.compact else stored or done


def do_on_one_core(job: Job) -> tuple[Job, NetworksLost] | None:
    """Do a job, if there is time for it, in a process that has one core to itself.

    Returns what diverged, if anything did, with the job: raised, it would end the other jobs.
    """
    torch.set_num_threads(1)
    try:
        if job.first or not job.deadline.over:
            do(job, lambda: None, Notes(job.notes, job.stage).write)
    except NetworksLost as error:
        return job, error
    return None


def do(job: Job, after_step: Callable[[], None], tell: Tell = lambda text: None) -> bool:
    """Do one job, or as much of it as there is time for; whether there is time for more.

    Raises: as :func:`steps`, but for OutOfTime.
    """
    try:
        for _ in steps(job, tell):
            after_step()
            job.deadline.check()
    except OutOfTime:
        return False
    return True


def steps(job: Job, tell: Tell = lambda text: None) -> Iterator[None]:
    """Do one job, step by step; what it finds is in files. ``tell`` hears of every epoch in this process.

    Raises: InvalidInput naming the machine if its package or its data is not the job's, or a damaged file;
    OSError if a file cannot be written; NetworksLost naming networks that diverged, once all is done that
    does not start from them; OutOfTime in a training or behind one, once the deadline is over.
    """
    if job.finished():
        return
    device = choose_device(job.device)
    data = _same_data(job.experiment, job.version, job.data_sha256)
    provenance = job.place.provenance | {"commit": _COMMIT, "device": device_name(device)}
    place = replace(job.place, provenance=provenance)
    bench = Bench(job.experiment, data, job.chain.seeds, device, job.deadline, tell=tell)
    if not job.base:
        yield from run_chain(bench, job.chain, place, level_rows)
        return
    networks = base_networks(bench, place)
    for path in job.units():
        run_unit(path, lambda: _mask_rows(job, networks, data), provenance)
    clear_dense(job.chain, place, experiment=job.experiment)
    yield


@functools.lru_cache(maxsize=1)
def _same_data(experiment: Experiment, version: str, sha256: str) -> Dataset:
    """The experiment's data, once this process is known to have what the command has that sent the job."""
    if package_version() != version:
        raise InvalidInput(
            f"worker on {platform.node()} has sparse-robustness {package_version()}, the command {version}; "
            "install the same version"
        )
    if fingerprint(experiment.data) != sha256:
        raise InvalidInput(
            f"data {experiment.data!r} on {platform.node()} is not what the command read; "
            "copy the same files there, or share their folder"
        )
    return experiment_data(experiment)


def experiment_data(experiment: Experiment) -> Dataset:
    """The examples an experiment trains on and attacks. Raises: InvalidInput if they cannot be had."""
    data = load(experiment.data)
    if experiment.network.kind == "linear-binary":
        data = data.pair(*experiment.pair)
    return data.first(n_train=experiment.train_examples, n_test=experiment.test_examples)


def fingerprint(name: str) -> str:
    """A hash of all examples of a data set."""
    data = load(name)
    found = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def level_rows(experiment: Experiment, data: Dataset, members: Members, networks: Ensemble) -> list[Rows]:
    """What is measured of the networks at one sparsity, and what the theory says of them."""
    measured = measure(networks, data, eps=experiment.eps, attacks=experiment.attacks, box=experiment.box)
    found = measured_rows(members, measured, data, eps=experiment.eps)
    found += further_steps(experiment, data, members, networks)
    if experiment.box:
        return found
    assert isinstance(networks, MLPEnsemble | ModuleEnsemble)
    if experiment.network.kind in LINEAR_KINDS:
        assert isinstance(networks, MLPEnsemble)
        return found + compare_linear(members, networks, measured, data, eps=experiment.eps)
    found += compare_relu(members, networks, measured, data)
    return found + (
        compare_locally(experiment, members, networks, measured, data) if experiment.local else []
    )


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


def _mask_rows(job: Job, networks: Ensemble, data: Dataset) -> list[Rows]:
    """The random-mask theorem on the dense networks."""
    assert isinstance(networks, MLPEnsemble | ModuleEnsemble)
    experiment, alphas, seeds = job.experiment, job.experiment.sparsities, list(job.chain.seeds)
    dense = ["dense"] * len(seeds), [0.0] * len(seeds), [0.0] * len(seeds)
    members = Members(data.name, experiment.network.kind, *dense, seeds)
    rungs = compare_masks(members, networks, data, alphas, pair=experiment.pair, copies=experiment.masks)
    return rungs + (
        predict_masks(members, networks, data, alphas) if isinstance(networks, MLPEnsemble) else []
    )
