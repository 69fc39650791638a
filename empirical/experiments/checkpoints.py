"""Networks on disk: safetensors files, written atomically and checked when read.

A compact file holds networks in half precision, of the weights only those that are kept, beside their masks
as bits: 2 (1 - sparsity) + 1/8 bytes per weight, 2 where nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from empirical.ensembles import AnyEnsemble, Ensemble, MLPEnsemble, ModuleEnsemble
from empirical.ensembles.modules import prunable_names
from empirical.runs.locations import Location
from empirical.training.checkpoints import read_tensors, write_tensors
from theory.types import InvalidInput, first_line


def save_networks(
    path: Location,
    networks: Ensemble,
    *,
    settings: str,
    compact: bool = False,
    provenance: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write all weights, biases, buffers and masks of an ensemble, which a run with these settings made.

    Commit, version and device of the ``provenance``, which are those that trained, become metadata of the
    file. A compact file keeps every bit of networks that :func:`halved` gave.
    """
    tensors = _tensors(networks)
    tensors = _packed(tensors, _weight_names(networks)) if compact else tensors
    told = {name: text for name, text in provenance.items() if name in ("commit", "version", "device")}
    write_tensors(path, {n: t.contiguous() for n, t in tensors.items()}, told | {"settings": settings})


def load_networks(path: Location, like: AnyEnsemble, *, settings: str, compact: bool = False) -> AnyEnsemble:
    """The networks that ``path`` holds, of the architecture, number and device of ``like``.

    Raises: InvalidInput naming a file that is damaged, holds other networks or those of other settings;
    Unreachable if it cannot be read.
    """
    wanted = _tensors(like)
    try:
        found, told = read_tensors(path, device=str(like.masks[0].device))
        if told.get("settings", settings) == settings:
            if compact:
                found = _unpacked(found, wanted, _weight_names(like))
            if _kinds(found) != _kinds(wanted):
                raise InvalidInput("it holds other networks")
            if not all(bool(torch.isfinite(t).all()) for t in found.values()):
                raise InvalidInput("it holds NaN or infinity")
            return _rebuilt(like, found)
    except (SafetensorError, InvalidInput, OSError) as error:
        raise InvalidInput(
            f"checkpoint {path} is damaged ({first_line(error)}); delete it and run again"
        ) from error
    raise InvalidInput(f"checkpoint {path} belongs to a run with other settings; choose a new folder")


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def halved(networks: AnyEnsemble) -> AnyEnsemble:
    """The networks with every value rounded to half precision (11 significant bits), in their own type.

    Values of a tensor with one beyond half precision's range stay as they are.
    """
    return _rebuilt(networks, {name: _rounded(t) for name, t in _tensors(networks).items()})


def _rounded(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half.to(tensor.dtype) if bool(torch.isfinite(half).all()) else tensor


def _packed(tensors: dict[str, Tensor], weights: list[str]) -> dict[str, Tensor]:
    """Kept weights in a row, masks as bits, everything in half precision that is exact in it."""
    found = dict(tensors)
    for i, name in enumerate(weights):
        mask = tensors[f"mask.{i}"]
        found[name] = tensors[name][mask]
        bits = np.packbits(mask.cpu().numpy()) if not bool(mask.all()) else np.empty(0, np.uint8)
        found[f"mask.{i}"] = torch.from_numpy(bits)
    for name, tensor in found.items():
        if tensor.is_floating_point() and torch.equal(tensor, tensor.half().to(tensor.dtype)):
            found[name] = tensor.half()
    return found


def _unpacked(found: dict[str, Tensor], like: dict[str, Tensor], weights: list[str]) -> dict[str, Tensor]:
    """The inverse of :func:`_packed`. Raises: InvalidInput if the file is another network's."""
    if found.keys() != like.keys():
        raise InvalidInput("it holds other networks")
    whole = {n: t.to(like[n].dtype) if t.is_floating_point() else t for n, t in found.items()}
    for i, name in enumerate(weights):
        shape, size = like[name].shape, like[name].numel()
        packed = found[f"mask.{i}"]
        if packed.dtype != torch.uint8 or packed.shape not in ((0,), (-(-size // 8),)):
            raise InvalidInput("it holds other networks")
        bits = packed.cpu().numpy()
        flat = np.unpackbits(bits, count=size) if len(bits) else np.ones(size, np.uint8)
        mask = torch.from_numpy(flat).to(like[name].device).bool().view(shape)
        if whole[name].dtype != like[name].dtype or whole[name].shape != (int(mask.sum()),):
            raise InvalidInput("it holds other networks")
        weight = torch.zeros_like(like[name], memory_format=torch.contiguous_format)
        weight[mask] = whole[name]
        whole |= {name: weight, f"mask.{i}": mask}
    return whole


def _weight_names(networks: Ensemble) -> list[str]:
    """Names of the prunable weights among :func:`_tensors`."""
    if isinstance(networks, ModuleEnsemble):
        return [f"state.{name}" for name in prunable_names(networks.module)]
    return [f"weight.{i}" for i in range(len(networks.masks))]


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
