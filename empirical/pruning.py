"""Masks that remove a given fraction of weights, for every member of an ensemble at once.

A criterion gives the masks of a sparsity. ``layers`` names the layers that are pruned, by their index as in a
list (-1 is the last); the masks of the others stay what they are. Masks of removed weights are False.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from empirical.ensembles import Ensemble, MLPEnsemble
from theory.types import InvalidInput, check_sparsity, count_removed

Masks = tuple[Bool[Tensor, "K *_"], ...]


def magnitude_masks(ensemble: Ensemble, *, sparsity: float, layers: Sequence[int] | None = None) -> Masks:
    """Layer-wise magnitude pruning: exactly round(sparsity * size) weights of every chosen layer removed.

    What is pruned already goes first, then the smallest absolute values; among equal ones, the lower flat
    index. Raises: InvalidInput unless sparsity is in [0, 1] and the layers exist.
    """
    check_sparsity("sparsity", sparsity)
    masks = list(ensemble.masks)
    for i in chosen_layers(ensemble, layers):
        ranks = _ranks(ensemble, i)
        masks[i] = _without_smallest(ranks, round(sparsity * ranks.shape[1])).view_as(masks[i])
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
    left = _without_smallest(together, round(sparsity * together.shape[1]))
    parts = left.split([masks[i][0].numel() for i in chosen], dim=1)
    for i, part in zip(chosen, parts, strict=True):
        masks[i] = part.reshape(masks[i].shape)
    return tuple(masks)


def n_of_m_masks(
    ensemble: Ensemble,
    *,
    sparsity: float,
    m: int,
    seeds: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> Masks:
    """N:M sparsity: of every m consecutive inputs of an output, the m * sparsity smallest weights removed.

    2:4, which sparse tensor cores multiply, has m = 4 and sparsity 0.5. Inputs of a convolution are its
    channels, at each position of the kernel apart. The order is that of :func:`magnitude_masks` within a
    group; the rest of a layer whose inputs are no multiple of m loses floor(sparsity * rest) of each output:
    a single channel none, below sparsity 1. With ``seeds``, inputs stand in a random order before they are
    grouped, as a network can be stored: one order for all outputs, the same for a seed at every sparsity.
    Raises: InvalidInput for m < 2, unless sparsity is a multiple of 1/m in [0, 1], there is one seed per
    member and the layers exist.
    """
    count = count_removed("sparsity", sparsity, m)
    generators = None if seeds is None else _generators(ensemble, seeds)
    masks = list(ensemble.masks)
    for i in chosen_layers(ensemble, layers):
        ranks = _ranks(ensemble, i).view_as(masks[i]).movedim(2, -1)
        inputs = ranks.shape[-1]
        order = _orders(generators, ranks) if generators else None
        if order is not None:
            ranks = ranks.gather(-1, order)
        groups = pad(ranks, (0, -inputs % m), value=torch.inf).unflatten(-1, (-1, m))
        removed = torch.full((groups.shape[-2], 1), count, device=ranks.device)
        if inputs % m:
            removed[-1] = count * (inputs % m) // m
        place = groups.argsort(dim=-1, stable=True).argsort(dim=-1)
        stays = (place >= removed).flatten(-2)[..., :inputs]
        if order is not None:
            stays = torch.empty_like(stays).scatter_(-1, order, stays)
        masks[i] = stays.movedim(-1, 2).contiguous()
    return tuple(masks)


def unit_masks(ensemble: MLPEnsemble, *, kept: Sequence[int]) -> Masks:
    """Structured pruning: all but the ``kept[l]`` strongest units of every hidden layer l removed whole.

    A unit's strength is the l_2 norm of its incoming weights, those that are left, from the units that stay.
    The weights into and out of the others are removed; units without any go first, of equal ones the first.
    Raises: InvalidInput unless there is one number per hidden layer, each from 0 to the layer's units.
    """
    widths = [mask.shape[1] for mask in ensemble.masks[:-1]]
    if len(kept) != len(widths) or not all(0 <= k <= n for k, n in zip(kept, widths, strict=True)):
        raise InvalidInput(f"kept is {list(kept)}; the hidden layers have {widths} units")
    masks = list(ensemble.masks)
    for i, (k, n) in enumerate(zip(kept, widths, strict=True)):
        weight, left = ensemble.weights[i], masks[i]
        norms = torch.where(left.any(dim=2), (weight * left).norm(dim=2), -1.0)
        stays = _without_smallest(norms, n - k)
        masks[i] = masks[i] & stays[:, :, None]
        masks[i + 1] = masks[i + 1] & stays[:, None]
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
    chosen, generators = chosen_layers(ensemble, layers), _generators(ensemble, seeds)
    masks = []
    for i, (weight, kept) in enumerate(zip(ensemble.weights, ensemble.masks, strict=True)):
        shape = weight.shape[1:]
        uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
        masks.append((uniform >= sparsity).to(weight.device) if i in chosen else kept)
    return tuple(masks)


def _generators(ensemble: Ensemble, seeds: Sequence[int]) -> list[torch.Generator]:
    """One for every member, on the CPU whatever the device. Raises: InvalidInput unless each has a seed."""
    if len(seeds) != ensemble.members:
        raise InvalidInput(f"seeds has {len(seeds)} entries; the ensemble has {ensemble.members} members")
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _orders(generators: Sequence[torch.Generator], like: Tensor) -> Int[Tensor, "K ..."]:
    """A random order of the last dimension of ``like`` for every member, in its shape."""
    orders = torch.stack([torch.randperm(like.shape[-1], generator=g) for g in generators])
    return orders.to(like.device).view(len(orders), *[1] * (like.ndim - 2), -1).expand_as(like)


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


def _without_smallest(ranks: Float[Tensor, "K size"], removed: int) -> Bool[Tensor, "K size"]:
    """False at so many smallest of every row; among equal ones, at the first."""
    mask = torch.ones_like(ranks, dtype=torch.bool)
    return mask.scatter_(1, ranks.argsort(dim=1, stable=True)[:, :removed], value=False)
