"""Networks that an earlier run trained, taken over by one that attacks them otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from safetensors import SafetensorError

from empirical.experiments.specification import Experiment
from empirical.results import read_settings
from empirical.runs.jobs import Job
from empirical.runs.locations import Location, Unreachable, names
from empirical.training.checkpoints import read_tensors, write_tensors
from theory.types import InvalidInput, first_line

# What decides an experiment's networks, besides sparsities, conditions and seeds, of which some may agree.
_OF_TRAINING = ("data_sha256", "train_examples", "compact", "network.", "first.", "retrain.")


def settings_of(source: Location) -> dict[str, object]:
    """The settings of the run whose folder ``source`` is. Raises: InvalidInput naming it if it is none."""
    note = source / "settings.json"
    try:
        if note.is_file():
            return read_settings(note)
    except (OSError, Unreachable) as error:
        raise InvalidInput(f"networks is {source}, but {first_line(error)}") from error
    raise InvalidInput(f"networks is {source}, which holds no settings.json; name a run's folder")


def find_networks(
    jobs: Sequence[Job], source: Location, settings: Mapping[str, object]
) -> list[tuple[Location, Location]]:
    """Files in the run's folder ``source`` with networks that unfinished jobs train, and where those belong.

    ``jobs`` are all those of a run with ``settings``. Of every chain the networks at the first sparsities
    that agree are found. Raises: InvalidInput naming ``source`` if its networks were trained otherwise, or it
    has none for these conditions and seeds.
    """
    earlier = settings_of(source)
    try:
        alike = {job.experiment.name: _trained_alike(job.experiment, settings, earlier) for job in jobs}
        stored = names(source / "checkpoints")
    except (InvalidInput, OSError, Unreachable) as error:
        raise InvalidInput(f"networks is {source}, but {first_line(error)}") from error
    found, left = False, []
    for job in jobs:
        name, agreeing = alike[job.experiment.name]
        there = replace(job.place, folder=source, experiment=name)
        levels = (0,) if job.base else range(1, agreeing)
        pairs = [(there.checkpoint(job.chain, i), job.place.checkpoint(job.chain, i)) for i in levels]
        pairs = [(old, new) for old, new in pairs if old.name in stored]
        found = found or bool(pairs)
        left += pairs if pairs and not job.finished() else []
    if not found:
        raise InvalidInput(f"networks is {source}, which has none of these conditions and seeds on disk")
    return left


def take_over(networks: Sequence[tuple[Location, Location]], *, settings: str) -> None:
    """Copy files of networks to places where none are yet, as those of the run with these settings.

    They keep what they say of who trained them.
    Raises: InvalidInput naming a damaged file; OSError if one cannot be written.
    """
    for old, new in networks:
        if not new.is_file():
            try:
                tensors, told = read_tensors(old)
            except (InvalidInput, SafetensorError, OSError, Unreachable) as error:
                raise InvalidInput(f"networks cannot be taken over: {old}, {first_line(error)}") from error
            write_tensors(new, tensors, told | {"settings": settings})


def _trained_alike(
    experiment: Experiment, settings: Mapping[str, object], earlier: Mapping[str, object]
) -> tuple[str, int]:
    """The earlier run's experiment of the same training, and how many of its first sparsities are the same.

    That of the same name is preferred. Raises: InvalidInput naming an entry that differs in the most similar
    one, if there is none.
    """
    of_training = (*_OF_TRAINING, "pair") if experiment.network.kind == "linear-binary" else _OF_TRAINING
    mine = _entries(experiment.name, settings)
    titled = {key.removesuffix(".title") for key in earlier if key.endswith(".title")}
    reasons: list[tuple[int, str]] = []
    for name in sorted(titled, key=lambda name: (name != experiment.name, name)):
        theirs = _entries(name, earlier)
        keys = [key for key in sorted(mine | theirs) if key.startswith(of_training)]
        different = [key for key in keys if mine.get(key) != theirs.get(key)]
        if not different:
            return name, _agreeing(experiment, theirs)
        key = different[0]
        values = f"{key} is {theirs.get(key)!r} there, {mine.get(key)!r} here"
        reason = f"{name} saw other data" if key == "data_sha256" else f"of {name}, {values}"
        reasons.append((len(different), reason))
    raise InvalidInput(min(reasons, default=(0, "it holds no experiment"))[1])


def _entries(name: str, settings: Mapping[str, object]) -> dict[str, object]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def _agreeing(experiment: Experiment, theirs: Mapping[str, object]) -> int:
    there = theirs["sparsities"]
    assert isinstance(there, list)
    count = 0
    for mine, other in zip(experiment.sparsities, there, strict=False):
        if mine != other:
            break
        count += 1
    return count
