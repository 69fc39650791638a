"""Masks that remove a given fraction of weights, for every member of an ensemble at once.

A criterion gives the masks of a sparsity; a schedule (:mod:`empirical.schedules`) applies it round after
round. ``layers`` names the layers that are pruned, by their index as in a list (-1 is the last); the masks of
the others stay what they are. Masks of removed weights are False.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_sparsity

Masks = tuple[Bool[Tensor, "K *_"], ...]


def magnitude_masks(ensemble: Ensemble, *, sparsity: float, layers: Sequence[int] | None = None) -> Masks:
    """Layer-wise magnitude pruning: exactly round(sparsity * size) weights of every chosen layer removed.

    What is pruned already goes first, then the smallest absolute values; among equal ones, the lower flat
    index. Raises: InvalidInput unless sparsity is in [0, 1] and the layers exist.
    """
    check_sparsity("sparsity", sparsity)
    masks = list(ensemble.masks)
    for i in chosen_layers(ensemble, layers):
        masks[i] = _without_smallest(_ranks(ensemble, i), sparsity).view_as(masks[i])
    return tuple(masks)


def global_magnitude_masks(
    ensemble: Ensemble, *, sparsity: float, layers: Sequence[int] | None = None
) -> Masks:
    """Global magnitude pruning: exactly round(sparsity * size) of the chosen layers' weights taken together.

    The order is that of :func:`magnitude_masks` across layers; among equal values, the earlier layer's go
    first. Raises: InvalidInput unless sparsity is in [0, 1] and the layers exist.
    """
    check_sparsity("sparsity", sparsity)
    masks = list(ensemble.masks)
    chosen = chosen_layers(ensemble, layers)
    together = torch.cat([_ranks(ensemble, i) for i in chosen], dim=1)
    parts = _without_smallest(together, sparsity).split([masks[i][0].numel() for i in chosen], dim=1)
    for i, part in zip(chosen, parts, strict=True):
        masks[i] = part.reshape(masks[i].shape)
    return tuple(masks)


def threshold_masks(
    ensemble: Ensemble, *, threshold: float = 0.0, layers: Sequence[int] | None = None
) -> Masks:
    """Weights of absolute value at most ``threshold`` removed; 0 removes those an L1 term has made 0.

    Raises: InvalidInput unless the threshold is finite and >= 0 and the layers exist.
    """
    if not 0 <= threshold < torch.inf:
        raise InvalidInput(f"threshold is {threshold}; it must be finite and not negative")
    masks = list(ensemble.masks)
    for i in chosen_layers(ensemble, layers):
        masks[i] = masks[i] & (ensemble.weights[i].abs() > threshold)
    return tuple(masks)


def bernoulli_masks(
    ensemble: Ensemble, *, sparsity: float, seeds: Sequence[int], layers: Sequence[int] | None = None
) -> Masks:
    """Independent masks: every weight of member k is removed with probability ``sparsity``.

    Member k's masks depend on seeds[k] alone and are nested: what is removed at one sparsity stays
    removed at every higher one. Raises: InvalidInput unless sparsity is in [0, 1], there is one seed
    per member and the layers exist.
    """
    check_sparsity("sparsity", sparsity)
    if len(seeds) != ensemble.members:
        raise InvalidInput(f"seeds has {len(seeds)} entries; the ensemble has {ensemble.members} members")
    chosen = chosen_layers(ensemble, layers)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    masks = []
    for i, (weight, kept) in enumerate(zip(ensemble.weights, ensemble.masks, strict=True)):
        shape = weight.shape[1:]
        uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
        masks.append((uniform >= sparsity).to(weight.device) if i in chosen else kept)
    return tuple(masks)


def chosen_layers(ensemble: Ensemble, layers: Sequence[int] | None) -> list[int]:
    """Indices of the named layers, rising; of all if None. Raises: InvalidInput for one that is not there."""
    depth = len(ensemble.masks)
    if layers is None:
        return list(range(depth))
    if not layers or not all(-depth <= i < depth for i in layers):
        raise InvalidInput(f"layers is {list(layers)}; name at least one of the {depth} layers, from 0 or -1")
    return sorted({i % depth for i in layers})


def _ranks(ensemble: Ensemble, layer: int) -> Float[Tensor, "K size"]:
    """What a layer's weights are sorted by: -1 where pruned already, the absolute value elsewhere."""
    weight, kept = ensemble.weights[layer], ensemble.masks[layer]
    return torch.where(kept, weight.abs(), -1.0).flatten(1)


def _without_smallest(ranks: Float[Tensor, "K size"], sparsity: float) -> Bool[Tensor, "K size"]:
    """False at the round(sparsity * size) smallest of every row; among equal ones, at the first."""
    removed = round(sparsity * ranks.shape[1])
    mask = torch.ones_like(ranks, dtype=torch.bool)
    return mask.scatter_(1, ranks.argsort(dim=1, stable=True)[:, :removed], value=False)
