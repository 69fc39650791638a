"""A training stored between two epochs, so that a killed one goes on where it was, bit for bit on a CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from empirical.ensembles import Ensemble, ModuleEnsemble
from empirical.ensembles.mlp import MLPEnsemble
from empirical.runs.locations import Location, Unreachable, on_disk, write_atomically
from empirical.training.descent import Descent
from empirical.training.recipe import Recipe
from theory.types import InvalidInput, first_line


class ForeignCheckpoint(InvalidInput):
    """A stored training that has another start, other data, another recipe or other seeds."""


def training_id(ensemble: Ensemble, x: Tensor, y: Tensor, recipe: Recipe, seeds: Sequence[int]) -> str:
    """A name for all that decides a training: where it starts, the data, the recipe, the seeds."""
    found = hashlib.sha256(json.dumps([recipe.describe(), list(seeds)], sort_keys=True).encode())
    further: Sequence[Tensor] = ()
    if isinstance(ensemble, MLPEnsemble):
        further = ensemble.biases
    elif isinstance(ensemble, ModuleEnsemble):
        further = tuple(ensemble.state.values())
        found.update(json.dumps([_computation(ensemble.module), ensemble.shape]).encode())
    for tensor in (*ensemble.weights, *ensemble.masks, *further, x, y):
        _add(found, tensor)
    return found.hexdigest()


def _computation(module: nn.Module) -> list[str]:
    """What a module computes, as its layers describe themselves, and hooks that do."""
    hooks = [hook for part in module.modules() for hook in part._forward_pre_hooks.values()]
    return [str(module), *(str(hook) for hook in hooks if type(hook).__repr__ is not object.__repr__)]


def write_tensors(path: Location, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically, with a digest of them all. Raises: OSError if the file cannot be written."""
    told = {**metadata, "sha256": _digest(tensors)}

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=told)
        except SafetensorError as error:  # its word for a full disk, and for a folder that is gone
            kind = OSError if temporary.parent.is_dir() else FileNotFoundError
            raise kind(str(error)) from error

    write_atomically(path, write)


def read_tensors(path: Location, *, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises: SafetensorError or OSError if it is no such file, Unreachable if it cannot be read, InvalidInput
    if its tensors are not those of its digest; a file without one, as other programs write them, is taken as
    it is.
    """
    try:
        with on_disk(path) as there, safe_open(there, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Unreachable:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        # A number type that PyTorch lacks, or sides whose product overflows.
        raise InvalidInput(f"it holds what is no tensor: {first_line(error)}") from error
    digest = _digest(tensors)
    if metadata.get("sha256", digest) != digest:
        raise InvalidInput("its digest differs")
    return tensors, metadata


def save_checkpoint(path: Location, states: Sequence[Descent], *, training: str, epoch: int) -> None:
    """Write all members that are left, whatever their parts are, in place of an earlier checkpoint."""
    tensors = _joined([_values(state) for state in states if state.members])
    tensors["members"] = torch.tensor([k for state in states for k in state.members], dtype=torch.int64)
    write_tensors(path, tensors, {"training": training, "epoch": str(epoch)})


def load_checkpoint(path: Location, states: Sequence[Descent], *, training: str, epochs: int) -> int:
    """Bring the parts of a training of ``epochs`` that has just begun to where the checkpoint was: its epoch.

    Raises: InvalidInput naming a file that is damaged, ForeignCheckpoint one of another training.
    """
    try:
        tensors, metadata = read_tensors(path)
        epoch = _epoch(metadata.get("epoch", ""), epochs)
        foreign = metadata.get("training") != training
        if not foreign:
            _restore(states, tensors, epoch)
    except (SafetensorError, InvalidInput, OSError) as error:
        raise InvalidInput(
            f"checkpoint {path} is damaged ({first_line(error)}); delete it and run again"
        ) from error
    if foreign:
        raise ForeignCheckpoint(
            f"checkpoint {path} belongs to another start, data, recipe or seeds; choose another path"
        )
    return epoch


def _epoch(text: str, epochs: int) -> int:
    """How far the training came. Raises: InvalidInput unless it is a number up to ``epochs``."""
    if not (text.isdecimal() and len(text) < 10 and int(text) <= epochs):
        raise InvalidInput(f"it came to epoch {text[:10]!r} of {epochs}")
    return int(text)


def _members(tensors: Mapping[str, Tensor], states: Sequence[Descent]) -> list[int]:
    """The members that are left. Raises: InvalidInput if the tensors are not just theirs."""
    members = tensors.get("members", torch.zeros(0))
    if members.dtype != torch.int64 or members.dim() != 1:
        raise InvalidInput("it does not say which members are left")
    left = members.tolist()
    if len(set(left)) < len(left) or not {k for state in states for k in state.members}.issuperset(left):
        raise InvalidInput(f"it holds members {left[:10]}")
    wanted = {
        name: (value.dtype, (len(left), *value.shape[1:])) for name, value in _values(states[0]).items()
    }
    found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items() if name != "members"}
    if left and found != wanted:
        other = min(name for name in found | wanted if found.get(name) != wanted.get(name))
        raise InvalidInput(f"{other!r} is not there, or of another shape or type")
    return left


def _restore(states: Sequence[Descent], tensors: Mapping[str, Tensor], epoch: int) -> None:
    """Bring all parts to this epoch. Raises: InvalidInput if the tensors are not those of this training."""
    members = _members(tensors, states)
    for state in states:
        state.epoch = epoch
        state.keep(torch.tensor([k in members for k in state.members], device=_device(state)))
        if state.members:
            _fill(state, tensors, [members.index(k) for k in state.members])


def _fill(state: Descent, tensors: Mapping[str, Tensor], rows: Sequence[int]) -> None:
    """Copy the rows of its members. Raises: InvalidInput for values that no training holds."""
    for name, value in _values(state).items():
        if name != "generators":
            value.copy_(tensors[name][rows])
    if not bool(state.finite().all()):
        raise InvalidInput("it holds NaN or infinity")
    for seed, row in zip(state.seeds, rows, strict=True):
        try:
            state.generators[seed].set_state(tensors["generators"][row].clone())
        except RuntimeError as error:
            raise InvalidInput(f"no generator was in its state: {first_line(error)}") from error


def _values(state: Descent) -> dict[str, Tensor]:
    """Everything that changes, one row per member; all but ``generators`` are the training's own memory."""
    networks = state.networks
    parts: dict[str, Sequence[Tensor]] = {
        "weight": networks.weights.parts,
        "other": networks.others.parts,
        "buffer": networks.buffers,
        "first.weight": state.first[0].parts,
        "first.other": state.first[1].parts,
    }
    if state.second is not None:
        parts |= {"second.weight": state.second[0].parts, "second.other": state.second[1].parts}
    if state.limits and state.masks is not None:
        parts |= {"mask": state.masks.parts, "limit": state.limits}
    found = {f"{name}.{i}": tensor for name, group in parts.items() for i, tensor in enumerate(group)}
    return found | {"generators": torch.stack([state.generators[seed].get_state() for seed in state.seeds])}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all parts, copied."""
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in (parts[0] if parts else ())}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        _add(found, tensors[name])
    return found.hexdigest()


def _add(found: hashlib._Hash, tensor: Tensor) -> None:
    found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _device(state: Descent) -> torch.device:
    return state.networks.weights.buffer.device
