"""Networks on disk: safetensors files, written atomically and checked when read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from empirical.checkpoints import read_tensors, write_tensors
from empirical.ensembles import AnyEnsemble, Ensemble, MLPEnsemble, ModuleEnsemble
from theory.types import InvalidInput


def save_networks(path: Path, networks: Ensemble, *, settings: str) -> None:
    """Write all weights, biases, buffers and masks of an ensemble, which a run with these settings made."""
    tensors = {name: t.contiguous() for name, t in _tensors(networks).items()}
    write_tensors(path, tensors, {"settings": settings})


def load_networks(path: Path, like: AnyEnsemble, *, settings: str) -> AnyEnsemble:
    """The networks that ``path`` holds, of the architecture, number and device of ``like``.

    Raises: InvalidInput naming a file that is damaged, holds other networks or those of other settings.
    """
    wanted = _tensors(like)
    try:
        found, told = read_tensors(path, device=str(like.masks[0].device))
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            raise InvalidInput("it holds other networks")
        if told.get("settings", settings) != settings:
            raise InvalidInput("it names a run with other settings")
        return _rebuilt(like, found)
    except (SafetensorError, InvalidInput, OSError) as error:
        raise InvalidInput(f"checkpoint {path} is damaged ({error}); delete it and run again") from error


def _tensors(networks: Ensemble) -> dict[str, Tensor]:
    tensors = {f"mask.{i}": mask for i, mask in enumerate(networks.masks)}
    if isinstance(networks, ModuleEnsemble):
        return tensors | {f"state.{name}": tensor for name, tensor in networks.state.items()}
    if isinstance(networks, MLPEnsemble):
        tensors |= {f"weight.{i}": weight for i, weight in enumerate(networks.weights)}
        return tensors | {f"bias.{i}": bias for i, bias in enumerate(networks.biases)}
    raise InvalidInput(f"networks of type {type(networks).__name__} cannot be stored")


def _rebuilt(like: AnyEnsemble, found: dict[str, Tensor]) -> AnyEnsemble:
    masks = tuple(found[f"mask.{i}"] for i in range(len(like.masks)))
    if isinstance(like, ModuleEnsemble):
        return replace(like, state={name: found[f"state.{name}"] for name in like.state}, masks=masks)
    depth = range(len(masks))
    parts = (tuple(found[f"{part}.{i}"] for i in depth) for part in ("weight", "bias"))
    return MLPEnsemble(*parts, masks)  # type: ignore[return-value]
