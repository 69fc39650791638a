"""Masks that remove a given fraction of weights, for every member of an ensemble at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from empirical.ensembles import Ensemble
from theory.types import InvalidInput, check_sparsity


def magnitude_masks(ensemble: Ensemble, *, sparsity: float) -> tuple[Bool[Tensor, "K _ _"], ...]:
    """Layer-wise magnitude pruning: exactly round(sparsity * size) weights of every layer removed.

    What is pruned already goes first, then the smallest absolute values; among equal ones, the lower flat
    index. Raises: InvalidInput unless sparsity is in
    [0, 1].
    """
    check_sparsity("sparsity", sparsity)
    masks = []
    for weight, kept in zip(ensemble.weights, ensemble.masks, strict=True):
        flat = torch.where(kept, weight.abs(), -1.0).flatten(1)
        removed = round(sparsity * flat.shape[1])
        mask = torch.ones_like(flat, dtype=torch.bool)
        mask.scatter_(1, flat.argsort(dim=1, stable=True)[:, :removed], value=False)
        masks.append(mask.view_as(weight))
    return tuple(masks)


def bernoulli_masks(
    ensemble: Ensemble, *, sparsity: float, seeds: Sequence[int]
) -> tuple[Bool[Tensor, "K _ _"], ...]:
    """Independent masks: every weight of member k is removed with probability ``sparsity``.

    Member k's masks depend on seeds[k] alone and are nested: what is removed at one sparsity stays
    removed at every higher one. Raises: InvalidInput unless sparsity is in [0, 1] and there is one seed
    per member.
    """
    check_sparsity("sparsity", sparsity)
    if len(seeds) != ensemble.members:
        raise InvalidInput(f"seeds has {len(seeds)} entries; the ensemble has {ensemble.members} members")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    masks = []
    for weight in ensemble.weights:
        shape = weight.shape[1:]
        uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
        masks.append((uniform >= sparsity).to(weight.device))
    return tuple(masks)
