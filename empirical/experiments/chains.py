"""The units of an experiment: chains of networks, level after level, each level a checkpoint and a table.

A chain is one condition for one block of seeds: on a CPU one seed each, spread over processes; on a GPU all
seeds at once, but wide networks of images one by one, which need no others to keep it busy. Everything goes
through files that are written whole or not at all, named after what they depend on, so a chain that was
killed goes on from its last level, on another machine too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from empirical.datasets import Dataset
from empirical.ensembles import Ensemble
from empirical.experiments.checkpoints import load_networks, save_networks
from empirical.experiments.conditions import (
    UNTRAINED,
    Bench,
    Tell,
    achieved_sparsity,
    blank_networks,
    dense_networks,
    next_networks,
)
from empirical.experiments.specification import Experiment
from empirical.locations import Location, remove_folder
from empirical.results import Members, Rows
from empirical.sweep import run_unit, unit_path

# Networks of which one alone keeps a GPU busy, and whose convolutions are slow in groups.
ALONE_KINDS = ("vgg", "resnet-32")
# From an experiment, its data and the networks of one level to the rows about them.
Measure = Callable[[Experiment, Dataset, Members, Ensemble], list[Rows]]


@dataclass(frozen=True)
class Chain:
    """One condition for one block of seeds."""

    condition: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the chain's files are called."""
        first, last = self.seeds[0], self.seeds[-1]
        return f"{self.condition}-{first}" if first == last else f"{self.condition}-{first}to{last}"


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

    Raises: OutOfTime as :func:`run_chain`.
    """
    chain, compact = Chain("base", bench.seeds), bench.experiment.compact
    path = place.checkpoint(chain, 0)
    if path.is_file():
        return load_networks(path, bench.initial(), settings=place.settings, compact=compact)
    unfinished = place.unfinished(chain, 0)
    networks = dense_networks(replace(bench, unfinished=unfinished, tell=_of(bench, "dense")))
    _keep(path, networks, unfinished, settings=place.settings, compact=compact)
    bench.deadline.check()
    return networks


def chain_is_done(experiment: Experiment, chain: Chain, place: Place) -> bool:
    """Whether the rows of all levels are on disk."""
    return all(place.level_unit(chain, level).is_file() for level in range(len(experiment.sparsities)))


def seeds_are_done(experiment: Experiment, seeds: tuple[int, ...], place: Place) -> bool:
    """Whether every chain of these seeds is, so that nothing starts from their dense networks any more."""
    return all(chain_is_done(experiment, Chain(c, seeds), place) for c in experiment.conditions)


def run_chain(bench: Bench, chain: Chain, place: Place, measure: Measure) -> Iterator[None]:
    """Train and measure a chain; yields whenever the rows of one more level are on disk.

    A level whose files are there is not computed again. Of a compact experiment, networks from which no
    other one starts are deleted. Raises: InvalidInput naming a damaged file; TrainingDiverged if a network's
    weights become infinite: earlier levels are on disk by then; OutOfTime in a training or behind one, once
    the deadline is over.
    """
    experiment = bench.experiment
    if chain_is_done(experiment, chain, place):
        return
    dense = previous = base_networks(bench, place)
    for level, sparsity in _levels(bench, chain, place):
        if level:
            previous = _level(bench, chain, place, level=level, dense=dense, previous=previous)
        networks = previous
        bench.tell(f"sparsity {sparsity:.3g}, attacks")

        def rows(sparsity: float = sparsity, networks: Ensemble = networks) -> list[Rows]:
            members = Members(
                dataset=bench.data.name,
                family=experiment.network.kind,
                pruning=[chain.condition] * len(chain.seeds),
                sparsity=[sparsity] * len(chain.seeds),
                achieved_sparsity=achieved_sparsity(bench, chain.condition, networks),
                seed=list(chain.seeds),
            )
            return measure(experiment, bench.data, members, networks)

        run_unit(place.level_unit(chain, level), rows, place.provenance)
        if experiment.compact:
            _clear(chain, place, before=level, experiment=experiment)
        yield


def _levels(bench: Bench, chain: Chain, place: Place) -> list[tuple[int, float]]:
    """The levels to go through, with their sparsities: of a compact experiment from the last stored one."""
    levels = list(enumerate(bench.experiment.sparsities))
    if not bench.experiment.compact:
        return levels
    done = next(level for level, _ in levels if not place.level_unit(chain, level).is_file())
    if chain.condition in UNTRAINED:
        return levels[done:]
    stored = [level for level in range(1, done + 1) if place.checkpoint(chain, level).is_file()]
    return levels[max(stored, default=min(done, 1)) :]


def _clear(chain: Chain, place: Place, *, before: int, experiment: Experiment) -> None:
    """Delete networks that nothing starts from now: earlier levels, finished chains, their dense ones."""
    done = chain_is_done(experiment, chain, place)
    for level in range(1, before + done):
        place.checkpoint(chain, level).unlink(missing_ok=True)
    needs_dense = experiment.network.kind == "mlp"  # for the mask theorem, when all chains are done
    if seeds_are_done(experiment, chain.seeds, place) and not needs_dense:
        place.checkpoint(Chain("base", chain.seeds), 0).unlink(missing_ok=True)


def _level(
    bench: Bench, chain: Chain, place: Place, *, level: int, dense: Ensemble, previous: Ensemble
) -> Ensemble:
    """The chain's networks at one level, from disk if they are there."""
    path, compact = place.checkpoint(chain, level), bench.experiment.compact
    if path.is_file():
        blank = blank_networks(bench, chain.condition, level=level)
        return load_networks(path, blank, settings=place.settings, compact=compact)
    unfinished = place.unfinished(chain, level)
    sparsity = bench.experiment.sparsities[level]
    making = replace(bench, unfinished=unfinished, tell=_of(bench, f"sparsity {sparsity:.3g}"))
    networks = next_networks(making, chain.condition, level=level, dense=dense, previous=previous)
    if chain.condition not in UNTRAINED:
        _keep(path, networks, unfinished, settings=place.settings, compact=compact)
        bench.deadline.check()
    return networks


def _of(bench: Bench, what: str) -> Tell:
    """Tells of the training of these networks."""
    several = f", {len(bench.seeds)} networks" if len(bench.seeds) > 1 else ""
    return lambda text: bench.tell(f"{what}{several}, {text}")


def _keep(path: Location, networks: Ensemble, unfinished: Location, *, settings: str, compact: bool) -> None:
    """Store finished networks, and delete what their unfinished trainings left."""
    save_networks(path, networks, settings=settings, compact=compact)
    remove_folder(unfinished)
