"""The units of an experiment: chains of networks, level after level, each level a checkpoint and a table.

A chain is one condition for one block of seeds: on a CPU one seed each, spread over processes; on a GPU all
seeds at once, but wide networks of images one by one, which need no others to keep it busy. Everything goes
through files that are written whole or not at all, named after what they depend on, so a chain that was
killed goes on from its last level, on another machine too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from empirical.datasets import Dataset
from empirical.ensembles import Ensemble
from empirical.experiments.checkpoints import load_networks, save_networks
from empirical.experiments.conditions import (
    APART,
    FINISHED_LATER,
    UNTRAINED,
    Bench,
    Tell,
    achieved_sparsity,
    blank_networks,
    dense_networks,
    next_networks,
)
from empirical.experiments.specification import LINEAR_KINDS, Experiment
from empirical.results import Members, Rows
from empirical.runs.locations import Location, remove_folder
from empirical.runs.sweep import run_unit, unit_path
from empirical.training.train import TrainingDiverged

# Networks of which one alone keeps a GPU busy, and whose convolutions are slow in groups.
ALONE_KINDS = ("vgg", "resnet-32")
# From an experiment, its data and the networks of one level to the rows about them.
Measure = Callable[[Experiment, Dataset, Members, Ensemble], list[Rows]]


class NetworksLost(RuntimeError):
    """Networks of a chain diverged; the message names them, and what does not start from them is done.

    ``units`` are files with rows of networks that were trained with them, and went on without them. ``left``
    are, if it was the dense networks that diverged, the seeds of those that did not; else None.
    """

    def __init__(
        self, message: str, units: Sequence[Location] = (), left: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(message, units, left)  # as it comes from another process
        self.units, self.left = units, left

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class Chain:
    """One condition for one block of seeds."""

    condition: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the chain's files are called."""
        runs = groupby(enumerate(self.seeds), lambda numbered: numbered[1] - numbered[0])
        ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
        seeds = "+".join(str(first) if first == last else f"{first}to{last}" for first, last in ends)
        return f"{self.condition}-{seeds}"

    def without_lost(self, error: TrainingDiverged) -> Chain:
        """The chain of those of its networks that did not diverge."""
        return replace(self, seeds=tuple(self.seeds[k] for k in error.members))


@dataclass(frozen=True)
class Place:
    """Where the files of an experiment lie, the settings they are keyed by, and every row's provenance."""

    folder: Location
    experiment: str
    settings: str
    provenance: dict[str, str]

    def checkpoint(self, chain: Chain, level: int) -> Location:
        """The file with a chain's networks at one level."""
        return self.folder / "checkpoints" / f"{self.experiment}-{chain.name}-{level:02d}.safetensors"

    def unfinished(self, chain: Chain, level: int) -> Location:
        """The folder of a training that leads to one level and was not finished."""
        return self.folder / "unfinished" / f"{self.experiment}-{chain.name}-{level:02d}"

    def level_unit(self, chain: Chain, level: int) -> Location:
        """The file with a chain's rows at one level."""
        return self.unit(f"{chain.name}-{level:02d}")

    def unit(self, name: str) -> Location:
        """The file with the rows of one unit."""
        return unit_path(self.folder / "units", self.settings, f"{self.experiment}-{name}")


def blocks(experiment: Experiment, device: torch.device) -> list[tuple[int, ...]]:
    """The seeds trained together: each by itself on a CPU and for wide networks of images, else all."""
    seeds = range(experiment.seeds)
    alone = device.type == "cpu" or experiment.network.kind in ALONE_KINDS
    return [(seed,) for seed in seeds] if alone else [tuple(seeds)]


def base_networks(bench: Bench, place: Place) -> Ensemble:
    """The dense networks that every chain of these seeds starts from, trained unless they are on disk.

    Raises: NetworksLost if some diverge, once the others are on disk; OutOfTime as :func:`run_chain`.
    """
    chain, compact = Chain("base", bench.seeds), bench.experiment.compact
    path = place.checkpoint(chain, 0)
    if path.is_file():
        return load_networks(path, bench.initial(), settings=place.settings, compact=compact)
    unfinished = place.unfinished(chain, 0)
    try:
        networks = dense_networks(replace(bench, unfinished=unfinished, tell=_of(bench, "dense")))
    except TrainingDiverged as error:
        rest = chain.without_lost(error)
        if error.survivors is not None:
            _save(place.checkpoint(rest, 0), error.survivors, place, compact=compact)
        told = f"{bench.experiment.network.kind}, dense before pruning, {error}"
        raise NetworksLost(told, left=rest.seeds) from error
    _save(path, networks, place, compact=compact)
    remove_folder(unfinished)
    bench.deadline.check()
    return networks


def speaks_of_masks(experiment: Experiment) -> bool:
    """Whether the random-mask theorem is held against this experiment's dense networks."""
    return experiment.network.kind not in LINEAR_KINDS and "random" in experiment.conditions


def mask_unit(base: Chain, place: Place) -> Location:
    """The file with what the random-mask theorem says of these dense networks."""
    return place.unit(f"masks-{base.name}")


def chain_is_done(experiment: Experiment, chain: Chain, place: Place) -> bool:
    """Whether the rows of all levels are on disk."""
    return all(place.level_unit(chain, level).is_file() for level in range(len(experiment.sparsities)))


def seeds_are_done(experiment: Experiment, seeds: tuple[int, ...], place: Place) -> bool:
    """Whether every chain of these seeds is, so that nothing starts from their dense networks any more."""
    return all(chain_is_done(experiment, Chain(c, seeds), place) for c in experiment.conditions)


def run_chain(bench: Bench, chain: Chain, place: Place, measure: Measure) -> Iterator[None]:
    """Train and measure a chain; yields whenever the rows of one more level are on disk.

    A level whose files are there is not computed again. Of a compact experiment, networks from which no
    other one starts are deleted. Where some networks diverge, the others go on, under names of their own.
    Raises: InvalidInput naming a damaged file; NetworksLost naming networks that diverged, once all is done
    that does not start from them; OutOfTime in a training or behind one, once the deadline is over.
    """
    experiment = bench.experiment
    if chain_is_done(experiment, chain, place):
        return
    dense = previous = base_networks(bench, place)
    left, lost, units = chain, list[str](), list[Location]()
    for level, sparsity in _levels(bench, chain, place):
        if chain.condition in APART:
            left, previous = chain, dense
        while level and left.seeds:
            start = dense.select([chain.seeds.index(seed) for seed in left.seeds])
            own = replace(bench, seeds=left.seeds)
            try:
                previous = _level(own, left, place, level=level, dense=start, previous=previous)
                break
            except TrainingDiverged as error:
                lost.append(f"{experiment.network.kind}, {left.condition}, sparsity {sparsity:g}, {error}")
                left = left.without_lost(error)
                previous = previous.select(error.members) if error.members else previous
        if not left.seeds:
            continue
        bench.tell(f"sparsity {sparsity:.3g}, attacks")

        def rows(sparsity: float = sparsity, networks: Ensemble = previous, left: Chain = left) -> list[Rows]:
            own = replace(bench, seeds=left.seeds)
            members = Members(
                dataset=bench.data.name,
                family=experiment.network.kind,
                pruning=[left.condition] * len(left.seeds),
                sparsity=[sparsity] * len(left.seeds),
                achieved_sparsity=achieved_sparsity(own, left.condition, networks),
                seed=list(left.seeds),
            )
            return measure(experiment, bench.data, members, networks)

        path = place.level_unit(left, level)
        run_unit(path, rows, place.provenance)
        units += [path] if left != chain else []
        if experiment.compact and not lost:
            _clear(chain, place, before=level, experiment=experiment)
        yield
    if lost:
        raise NetworksLost("; ".join(lost), units)


def _levels(bench: Bench, chain: Chain, place: Place) -> list[tuple[int, float]]:
    """The levels to go through, with their sparsities: of a compact experiment from the last stored one."""
    levels = list(enumerate(bench.experiment.sparsities))
    if not bench.experiment.compact:
        return levels
    missing = (level for level, _ in levels if not place.level_unit(chain, level).is_file())
    done = next(missing, None)
    if done is None:  # another command has ended the chain meanwhile
        return []
    if chain.condition in UNTRAINED:
        return levels[done:]
    stored = [level for level in range(1, done + 1) if place.checkpoint(chain, level).is_file()]
    return levels[max(stored, default=min(done, 1)) :]


def _clear(chain: Chain, place: Place, *, before: int, experiment: Experiment) -> None:
    """Delete networks that nothing starts from now: earlier levels, finished chains, their dense ones."""
    done = chain_is_done(experiment, chain, place)
    for level in range(1, before + done):
        place.checkpoint(chain, level).unlink(missing_ok=True)
    clear_dense(Chain("base", chain.seeds), place, experiment=experiment)


def clear_dense(base: Chain, place: Place, *, experiment: Experiment) -> None:
    """Delete a compact experiment's dense networks if nothing starts from or speaks of them any more."""
    judged = not speaks_of_masks(experiment) or mask_unit(base, place).is_file()
    if experiment.compact and judged and seeds_are_done(experiment, base.seeds, place):
        place.checkpoint(base, 0).unlink(missing_ok=True)


def _level(
    bench: Bench, chain: Chain, place: Place, *, level: int, dense: Ensemble, previous: Ensemble
) -> Ensemble:
    """The chain's networks at one level, from disk if they are there.

    Raises: TrainingDiverged if some diverge; the others are on disk then, if they are as they shall be.
    """
    path, compact = place.checkpoint(chain, level), bench.experiment.compact
    if path.is_file():
        blank = blank_networks(bench, chain.condition, level=level)
        return load_networks(path, blank, settings=place.settings, compact=compact)
    unfinished = place.unfinished(chain, level)
    sparsity = bench.experiment.sparsities[level]
    making = replace(bench, unfinished=unfinished, tell=_of(bench, f"sparsity {sparsity:.3g}"))
    try:
        networks = next_networks(making, chain.condition, level=level, dense=dense, previous=previous)
    except TrainingDiverged as error:
        if error.survivors is not None and chain.condition not in FINISHED_LATER:
            kept = place.checkpoint(chain.without_lost(error), level)
            _save(kept, error.survivors, place, compact=compact)
        raise
    if chain.condition not in UNTRAINED:
        _save(path, networks, place, compact=compact)
        remove_folder(unfinished)
        bench.deadline.check()
    return networks


def _of(bench: Bench, what: str) -> Tell:
    """Tells of the training of these networks."""
    several = f", {len(bench.seeds)} networks" if len(bench.seeds) > 1 else ""
    return lambda text: bench.tell(f"{what}{several}, {text}")


def _save(path: Location, networks: Ensemble, place: Place, *, compact: bool) -> None:
    save_networks(path, networks, settings=place.settings, compact=compact, provenance=place.provenance)
