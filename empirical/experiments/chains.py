"""The units of an experiment: chains of networks, level after level, each level a checkpoint and a table.

A chain is one condition for one block of seeds: on a CPU one seed each, spread over processes; on a GPU all
seeds at once. Everything goes through files that are written whole or not at all, named after what they
depend on, so a chain that was killed goes on from its last level, on another machine too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from empirical.datasets import Dataset
from empirical.ensembles import Ensemble
from empirical.experiments.checkpoints import load_networks, save_networks
from empirical.experiments.conditions import (
    UNTRAINED,
    Bench,
    achieved_sparsity,
    blank_networks,
    dense_networks,
    next_networks,
)
from empirical.experiments.specification import Experiment
from empirical.results import Members, Rows
from empirical.sweep import run_unit, unit_path

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

    folder: Path
    experiment: str
    settings: str
    provenance: dict[str, str]

    def checkpoint(self, chain: Chain, level: int) -> Path:
        """The file with a chain's networks at one level."""
        return self.folder / "checkpoints" / f"{self.experiment}-{chain.name}-{level:02d}.safetensors"

    def level_unit(self, chain: Chain, level: int) -> Path:
        """The file with a chain's rows at one level."""
        return self.unit(f"{chain.name}-{level:02d}")

    def unit(self, name: str) -> Path:
        """The file with the rows of one unit."""
        return unit_path(self.folder / "units", self.settings, f"{self.experiment}-{name}")


def blocks(experiment: Experiment, device: torch.device) -> list[tuple[int, ...]]:
    """The seeds that are trained together: each by itself on a CPU, all at once elsewhere."""
    seeds = range(experiment.seeds)
    return [(seed,) for seed in seeds] if device.type == "cpu" else [tuple(seeds)]


def base_networks(bench: Bench, place: Place) -> Ensemble:
    """The dense networks that every chain of these seeds starts from, trained unless they are on disk."""
    path = place.checkpoint(Chain("base", bench.seeds), 0)
    if path.is_file():
        return load_networks(path, bench.initial(), settings=place.settings)
    networks = dense_networks(bench)
    save_networks(path, networks, settings=place.settings)
    return networks


def run_chain(bench: Bench, chain: Chain, place: Place, measure: Measure) -> Iterator[None]:
    """Train and measure a chain; yields whenever the rows of one more level are on disk.

    A level whose files are there is not computed again. Raises: InvalidInput naming a damaged file;
    TrainingDiverged if a network's weights become infinite: earlier levels are on disk by then.
    """
    experiment = bench.experiment
    dense = previous = base_networks(bench, place)
    for level, sparsity in enumerate(experiment.sparsities):
        if level:
            previous = _level(bench, chain, place, level=level, dense=dense, previous=previous)
        networks = previous

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
        yield


def _level(
    bench: Bench, chain: Chain, place: Place, *, level: int, dense: Ensemble, previous: Ensemble
) -> Ensemble:
    """The chain's networks at one level, from disk if they are there."""
    path = place.checkpoint(chain, level)
    if path.is_file():
        blank = blank_networks(bench, chain.condition, level=level)
        return load_networks(path, blank, settings=place.settings)
    networks = next_networks(bench, chain.condition, level=level, dense=dense, previous=previous)
    if chain.condition not in UNTRAINED:
        save_networks(path, networks, settings=place.settings)
    return networks
