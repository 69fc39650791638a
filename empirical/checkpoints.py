"""A training stored between two epochs, so that a killed one goes on where it was, bit for bit on a CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from empirical.descent import Descent
from empirical.ensembles import Ensemble, ModuleEnsemble
from empirical.ensembles.mlp import MLPEnsemble
from empirical.locations import Location, on_disk, write_atomically
from empirical.recipe import Recipe
from theory.types import InvalidInput


def training_id(ensemble: Ensemble, x: Tensor, y: Tensor, recipe: Recipe, seeds: Sequence[int]) -> str:
    """A name for all that decides a training: where it starts, the data, the recipe, the seeds."""
    found = hashlib.sha256(json.dumps([recipe.describe(), list(seeds)], sort_keys=True).encode())
    further: Sequence[Tensor] = ()
    if isinstance(ensemble, MLPEnsemble):
        further = ensemble.biases
    elif isinstance(ensemble, ModuleEnsemble):
        further = tuple(ensemble.state.values())
    for tensor in (*ensemble.weights, *ensemble.masks, *further, x, y):
        _add(found, tensor)
    return found.hexdigest()


def write_tensors(path: Location, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically, with a digest of them all. Raises: OSError if the file cannot be written."""
    told = {**metadata, "sha256": _digest(tensors)}

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=told)
        except SafetensorError as error:  # its word for a full disk too
            raise OSError(str(error)) from error

    write_atomically(path, write)


def read_tensors(path: Location, *, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises: SafetensorError or OSError if it cannot be read, InvalidInput if its tensors are not those of its
    digest; a file without one, as other programs write them, is taken as it is.
    """
    with on_disk(path) as there, safe_open(there, framework="pt", device=device) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    digest = _digest(tensors)
    if metadata.get("sha256", digest) != digest:
        raise InvalidInput("its digest differs")
    return tensors, metadata


def save_checkpoint(path: Location, states: Sequence[Descent], *, training: str, epoch: int) -> None:
    """Write all members that are left, whatever their parts are, in place of an earlier checkpoint."""
    tensors = _joined([_values(state) for state in states if state.members])
    tensors["members"] = torch.tensor([k for state in states for k in state.members], dtype=torch.int64)
    write_tensors(path, tensors, {"training": training, "epoch": str(epoch)})


def load_checkpoint(path: Location, states: Sequence[Descent], *, training: str) -> int:
    """Bring the parts of a training that has just begun to where the checkpoint was; returns its epoch.

    Raises: InvalidInput naming a file that is damaged or belongs to another training.
    """
    try:
        tensors, metadata = read_tensors(path)
        if not metadata.get("epoch", "").isdecimal():
            raise InvalidInput("it does not say how far it came")
    except (SafetensorError, InvalidInput, OSError) as error:
        raise InvalidInput(f"checkpoint {path} is damaged ({error}); delete it and run again") from error
    if metadata.get("training") != training:
        raise InvalidInput(
            f"checkpoint {path} belongs to another start, data, recipe or seeds; choose another path"
        )
    epoch = int(metadata["epoch"])
    members = tensors["members"].tolist()
    for state in states:
        state.keep(torch.tensor([k in members for k in state.members], device=_device(state)))
        rows = [members.index(k) for k in state.members]
        for name, value in _values(state).items():
            if name != "generators":
                value.copy_(tensors[name][rows])
        for seed, row in zip(state.seeds, rows, strict=True):
            state.generators[seed].set_state(tensors["generators"][row].clone())
        state.epoch = epoch
    return epoch


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
