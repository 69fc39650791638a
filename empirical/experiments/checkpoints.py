"""Networks on disk: safetensors files, written atomically and checked when read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from empirical.ensembles import AnyEnsemble, Ensemble, MLPEnsemble, ModuleEnsemble
from empirical.results import write_atomically
from theory.types import InvalidInput


def save_networks(path: Path, networks: Ensemble) -> None:
    """Write all weights, biases, buffers and masks of an ensemble."""
    tensors = {name: t.contiguous() for name, t in _tensors(networks).items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_networks(path: Path, like: AnyEnsemble) -> AnyEnsemble:
    """The networks that ``path`` holds, of the architecture, number and device of ``like``.

    Raises: InvalidInput naming a file that is damaged or holds other networks.
    """
    wanted = _tensors(like)
    try:
        found = load_file(path, device=str(like.masks[0].device))
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            raise InvalidInput("it holds other networks")
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
