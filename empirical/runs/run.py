"""Run experiments: train, prune, attack, compute the theory, and judge whether they agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch

from empirical.claims import judge, violations
from empirical.data.named import NAMED
from empirical.datasets import Dataset
from empirical.experiments.architectures import check_smaller
from empirical.experiments.chains import Chain, NetworksLost, Place, blocks, speaks_of_masks
from empirical.experiments.conditions import check_images
from empirical.experiments.specification import CONVOLUTIONAL_KINDS, Experiment
from empirical.results import (
    INCOMPLETE,
    as_stored,
    join_tables,
    open_run,
    read_final,
    settings_id,
    write_table,
)
from empirical.runs.deadline import NEVER, Deadline, OutOfTime
from empirical.runs.jobs import Job, do, do_on_one_core, experiment_data, fingerprint
from empirical.runs.locations import Location, in_one_process, present
from empirical.runs.progress import Advance, Progress
from empirical.runs.provenance import commit, package_version
from empirical.runs.takeover import find_networks, settings_of, take_over
from empirical.runs.workers import HERE, Workers, spread
from theory.types import InvalidInput

# Hears a line that the user should see.
Note = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run found: its rows per network, the judged claims, every case in which a theorem failed."""

    path: Location
    networks: pd.DataFrame
    claims: pd.DataFrame
    violations: pd.DataFrame
    settings: dict[str, object]


@dataclass(frozen=True)
class Part:
    """Every ``count``-th block of seeds, from the ``index``-th on: the share of one command among several.

    Raises: InvalidInput unless 0 <= index < count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InvalidInput(
                f"part is {self.index}/{self.count}; with N commands, give 0/N, 1/N ... to the last, N-1/N"
            )


def describe(
    experiments: Sequence[Experiment], device: torch.device, *, networks: Location | None = None
) -> dict[str, object]:
    """All that decides a run's numbers, as plain JSON values: experiments, data, version, kind of device.

    And the settings of the run in the folder ``networks``, by their id, if its networks are taken over.
    Raises: InvalidInput naming ``networks`` if it is no run's folder.
    """
    described: dict[str, object] = {}
    for experiment in experiments:
        described |= _flat(experiment.describe(), f"{experiment.name}.")
        described[f"{experiment.name}.data_sha256"] = fingerprint(experiment.data)
    described |= {"version": package_version(), "device": device.type}
    if networks is not None:
        described["networks"] = settings_id(settings_of(networks))
    return json.loads(json.dumps(described))


def _flat(table: Mapping[str, object], prefix: str) -> dict[str, object]:
    """Entries of tables inside tables under dotted names."""
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def default_folder(
    experiments: Sequence[Experiment], device: torch.device, *, networks: Location | None = None
) -> Path:
    """results/<names>-<settings>: another folder for other settings, so that no run overwrites another."""
    names = "+".join(e.name for e in experiments)
    return Path("results") / f"{names}-{settings_id(describe(experiments, device, networks=networks))}"


def total_steps(experiments: Sequence[Experiment], device: torch.device, part: Part = Part()) -> int:
    """How many units a run, or a part of it, has, and so how often ``advance`` is called."""
    return sum(
        len(blocks(e, device)[part.index :: part.count])
        * (len(e.conditions) * len(e.sparsities) + speaks_of_masks(e))
        for e in experiments
    )


def run_experiments(
    experiments: Sequence[Experiment],
    out: Location,
    *,
    device: torch.device,
    networks: Location | None = None,
    workers: Workers = HERE,
    advance: Advance = lambda stage, detail: None,
    tell: Advance = lambda stage, detail: None,
    note: Note = lambda line: None,
    deadline: Deadline = NEVER,
) -> Outcome:
    """Run all experiments into ``out``, continuing what an earlier run with the same settings left there.

    Titles, and the folder of the same data, may be others; the run keeps those that it began with.
    ``workers`` share the chains; the rows do not depend on who they are, but for the rounding of sums: one
    alone computes with all cores, each of several with one. They see ``out``, and read the data,
    under the same paths. ``advance`` hears of every finished unit, ``tell`` of the epochs of this machine's
    processes, ``note`` of doubtful data and of units that another commit made. A file that is there is
    reused, never overwritten. Past the ``deadline`` it stops after the epoch or the measurement at hand. What
    the run in the folder ``networks`` trained in the same way is taken over (:mod:`empirical.runs.takeover`).
    Raises: InvalidInput for bad data or settings, a folder that is unwritable, holds other results or a
    damaged file; NetworksLost if networks diverged, once the rows of the others are in
    ``incomplete.parquet``, which is no finished run's table; WorkersLost if workers were killed, OutOfTime if
    the deadline came before the end: the same call goes on from what was finished.
    """
    settings = _open(experiments, out, device, workers, networks, note)
    final = out / "results.parquet"
    if final.is_file():
        content = read_final(final, settings=settings_id(settings))
    else:
        dense, rest = _jobs(experiments, out, settings, device, Part(), deadline)
        jobs, lost = _work(dense, rest, workers, advance, tell, note)
        units = [path for job in jobs for path in job.units()]
        if lost:
            raise _incomplete(lost, units, out / INCOMPLETE)
        content = join_tables(units)
        write_table(final, content)
        (out / INCOMPLETE).unlink(missing_ok=True)
    rows = content.filter(pc.field("example").is_null()).to_pandas()
    return Outcome(final, rows, judge(rows), violations(content), settings)


def _incomplete(lost: Sequence[NetworksLost], units: Sequence[Location], path: Location) -> NetworksLost:
    """Write the rows that there are; what to raise of it."""
    there = [*present(units), *(unit for error in lost for unit in error.units)]
    if not there:
        return _told(lost, "nothing else is left")
    write_table(path, join_tables(there))
    rest = f"whatever does not start from these networks is in {path}, for the commands claims and figures"
    return _told(lost, rest)


def _told(lost: Sequence[NetworksLost], rest: str) -> NetworksLost:
    return NetworksLost(f"{'; '.join(map(str, lost))}; lower it and choose a new folder; {rest}")


def run_part(
    experiments: Sequence[Experiment],
    out: Location,
    *,
    part: Part,
    device: torch.device,
    networks: Location | None = None,
    workers: Workers = HERE,
    advance: Advance = lambda stage, detail: None,
    tell: Advance = lambda stage, detail: None,
    note: Note = lambda line: None,
    deadline: Deadline = NEVER,
) -> int:
    """Do one part of a run, whose other parts other commands do in the same folder; no table is made.

    Returns the number of units that the whole run still lacks. Raises: as ``run_experiments``.
    """
    settings = _open(experiments, out, device, workers, networks, note)
    _, lost = _work(*_jobs(experiments, out, settings, device, part, deadline), workers, advance, tell, note)
    if lost:
        raise _told(lost, "all of this part that does not start from these networks is done")
    dense, rest = _jobs(experiments, out, settings, device, Part(), deadline)
    units = [path for job in dense + rest for path in job.units()]
    return len(units) - len(present(units))


def _open(
    experiments: Sequence[Experiment],
    out: Location,
    device: torch.device,
    workers: Workers,
    networks: Location | None,
    note: Note,
) -> dict[str, object]:
    """Make the folder that of this run, with the networks it takes over; returns the settings."""
    if in_one_process(out) and not workers.here:
        raise InvalidInput(
            f"out is {out}, which no other process sees; use one worker (--workers 1), or another location"
        )
    _check_apart(experiments)
    doubts = []
    for experiment in experiments:
        data = experiment_data(experiment)  # a class that is missing is an error before any work
        check_smaller(experiment, inputs=data.x_train.shape[1], classes=data.classes)
        _check_data(experiment, data)
        doubts += [f"Note: data {experiment.data}: {data.doubt}"] if data.doubt else []
    for doubt in dict.fromkeys(doubts):
        note(doubt)
    settings = as_stored(out, describe(experiments, device, networks=networks))
    taken = []
    if networks is not None:
        dense, rest = _jobs(experiments, out, settings, device, Part(), NEVER)
        taken = find_networks(dense + rest, networks, settings)
    open_run(out, settings)
    take_over(taken, settings=settings_id(settings))
    return settings


def _check_apart(experiments: Sequence[Experiment]) -> None:
    """Raises: InvalidInput if two experiments of a run would share files, or the claims mix up their rows."""
    names = [experiment.name for experiment in experiments]
    for k, experiment in enumerate(experiments):
        kind = experiment.network.kind
        for other in experiments[:k]:
            if other.network.kind == kind:
                raise InvalidInput(
                    f"experiments {other.name} and {experiment.name} both have networks of kind {kind!r}, "
                    "which one table cannot tell apart; run each into a folder of its own"
                )
    if len(set(names)) < len(names):
        raise InvalidInput(f"experiments are named {', '.join(names)}; give every one a name of its own")


def _check_data(experiment: Experiment, data: Dataset) -> None:
    """Raises: InvalidInput for what would fail only once networks are trained."""
    if speaks_of_masks(experiment) and max(experiment.pair) >= data.classes:
        raise InvalidInput(
            f"pair is {experiment.pair} in {experiment.name}; the data has {data.classes} classes, "
            f"so give two of 0 to {data.classes - 1}"
        )
    if experiment.network.kind in CONVOLUTIONAL_KINDS:
        check_images(experiment.network, data)
    if len(np.unique(data.y_test)) < 2:
        raise InvalidInput(
            f"test_examples is {len(data.y_test)} in {experiment.name}, and all of these are of one class; "
            "the theory is about two classes or more: give more, or shuffle the test set"
        )
    for stage in ("first", "retrain"):
        if getattr(experiment, stage).augmentation and experiment.network.kind not in CONVOLUTIONAL_KINDS:
            raise InvalidInput(
                f"{stage}.augmentation in {experiment.name} shifts and flips images; "
                f"a network of the kind {experiment.network.kind!r} takes rows of features: leave it out"
            )


def _jobs(
    experiments: Sequence[Experiment],
    out: Location,
    settings: Mapping[str, object],
    device: torch.device,
    part: Part,
    deadline: Deadline,
) -> tuple[list[Job], list[Job]]:
    """The dense networks that all start from, and the chains that start from them."""
    dense, rest = [], []
    provenance = {"settings": settings_id(settings), "version": package_version(), "dtype": "float64"}
    for experiment in experiments:
        place = Place(out.absolute(), experiment.name, settings_id(settings), provenance)
        sha256 = str(settings[f"{experiment.name}.data_sha256"])
        there = replace(experiment, data=_absolute(experiment.data))
        for seeds in blocks(experiment, device)[part.index :: part.count]:
            made = [
                Job(there, Chain(condition, seeds), place, device.type, package_version(), sha256, deadline)
                for condition in ("base", *experiment.conditions)
            ]
            dense.append(made[0])
            rest += made[1:]
    return dense, rest


def _absolute(data: str) -> str:
    """The data's name as another process finds it, whatever its working directory."""
    return data if data == "digits" or data in NAMED else str(Path(data).absolute())


def _work(
    dense: Sequence[Job], rest: Sequence[Job], workers: Workers, advance: Advance, tell: Advance, note: Note
) -> tuple[list[Job], list[NetworksLost]]:
    """Do all jobs, the dense networks first, several at once where there are several workers.

    Returns the jobs that could be begun, and the networks that diverged. Raises: OutOfTime.
    """
    told = Progress([path for job in (*dense, *rest) for path in job.units()], advance, tell)
    told.look()
    _tell_of_commits(told.commits, note)
    deadline = dense[0].deadline if dense else NEVER
    lost: list[tuple[Job, NetworksLost]] = []
    order = {block: i for i, block in enumerate(dict.fromkeys(job.block for job in (*rest, *dense)))}
    jobs = sorted([*rest, *dense], key=lambda job: order[job.block])  # what is said of dense networks last
    if workers.here:
        # Dense networks are trained when the first chain asks for them, so that seed follows on seed.
        done = 0
        while done < len(jobs):
            job = jobs[done]
            try:
                if not do(job, partial(told.reached, job.units()), partial(tell, job.stage)):
                    break
            except NetworksLost as error:
                lost.append((job, error))
                if error.left is not None:
                    jobs[done:] = _without_lost(jobs[done:], job, error.left)
                    continue
            done += 1
    else:
        stages = [[job for job in some if not job.finished()] for some in (dense, rest)]
        if any(stages):
            most = max(map(len, stages))  # further processes would start, and end without work
            crew, cuda = replace(workers, count=min(workers.count, most)), dense[0].device == "cuda"
            first = crew.count  # so many jobs are begun whatever the time, in the first stage that has any
            with told.watching() as notes, spread(crew, cuda=cuda, tell=tell) as each:
                for last in (False, True):
                    waiting = [job for job in (jobs if last else dense) if not job.finished()]
                    begun = [replace(job, first=i < first, notes=notes) for i, job in enumerate(waiting)]
                    first = 0 if waiting else first
                    found = [pair for pair in each(do_on_one_core, begun) if pair]
                    for job, error in found:
                        if error.left is not None:
                            jobs = _without_lost(jobs, job, error.left)
                    lost += found
    told.look()
    over = {(job.block, job.chain.condition) for job, _ in lost}
    left = [job for job in jobs if not job.finished() and (job.block, job.chain.condition) not in over]
    if deadline.over and left:
        raise OutOfTime
    return jobs, [error for _, error in lost]


def _without_lost(jobs: Sequence[Job], like: Job, seeds: tuple[int, ...]) -> list[Job]:
    """The jobs; those that start from the dense networks of ``like`` are of these seeds alone, or gone."""
    alike = [job.block == like.block for job in jobs]
    kept = [(job, same) for job, same in zip(jobs, alike, strict=True) if seeds or not same]
    return [replace(job, chain=replace(job.chain, seeds=seeds)) if same else job for job, same in kept]


def _tell_of_commits(finished: set[str], note: Note) -> None:
    """Say it if units that are there were made by another commit of the package."""
    now = commit()
    others = ", ".join(sorted(finished - {now}))
    if others:
        note(f"Note: finished units are of commit {others}, new ones of {now}; every row names its own")
