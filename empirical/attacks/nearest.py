"""The linearised boundaries g_k = g_y around examples, and the nearest of them.

They take gradients of every class; these are held for a few examples at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.attacks.geometry import feasible, norm
from empirical.ensembles import Ensemble, MLPEnsemble

Box = tuple[float, float] | None

# Bytes of the gradients that fully connected networks take at once on a CPU: what stays in its cache.
# Modules take a few examples at a time themselves.
_BYTES = 2**22


@dataclass(frozen=True)
class Nearest:
    """The boundary to the class k whose linearised one is nearest.

    ``gap`` is g_y - g_k, ``gradient`` that of g_k - g_y, and ``size`` its dual norm. Where no gradient leads
    to any boundary, it is the first other class, and ``size`` is 0.
    """

    gap: Float[Tensor, "K n"]
    size: Float[Tensor, "K n"]
    gradient: Float[Tensor, "K n d"]

    def step(self, *, p: float) -> Float[Tensor, "K n d"]:
        """The shortest l_p step onto the boundary; 0 where there is none."""
        length = self.gap.abs() / self.size
        length = torch.where(length.isfinite(), length, 0.0)
        if p == 2:
            return self.gradient * (length / torch.where(self.size > 0, self.size, 1.0))[..., None]
        return self.gradient.sign() * length[..., None]


def nearest_boundaries(
    nets: Ensemble,
    x: Float[Tensor, "*K n d"],
    y: Int[Tensor, "*K n"],
    *,
    norms: Sequence[float] = (2.0, torch.inf),
    boxes: Collection[Box] = (None,),
) -> dict[tuple[float, Box], Nearest]:
    """The nearest boundary in each of these norms with each of these boxes, by (p, box).

    With a box, features at a wall are left out of gradients that push them through.
    """
    x, y = x.expand(nets.members, *x.shape[-2:]), y.expand(nets.members, y.shape[-1])
    parts = [_nearest(nets, *some, norms, boxes) for some in in_parts(nets, x, y)]
    return {key: joined([part[key] for part in parts]) for key in parts[0]}


def in_parts(
    nets: Ensemble, x: Float[Tensor, "K n d"], y: Int[Tensor, "K n"]
) -> list[tuple[Float[Tensor, "K m d"], Int[Tensor, "K m"]]]:
    """The examples, so many at a time as have their gradients of every class held at once."""
    rows = max(1, x.shape[1])
    if isinstance(nets, MLPEnsemble) and x.device.type == "cpu":
        rows = max(1, _BYTES // (x.element_size() * nets.members * nets.classes * nets.inputs))
    return list(zip(x.split(rows, 1), y.split(rows, 1), strict=True))


def pulls(
    nets: Ensemble, x: Float[Tensor, "K n d"], y: Int[Tensor, "K n"]
) -> tuple[Float[Tensor, "K n others"], Float[Tensor, "K n others d"]]:
    """g_y - g_k for every class k other than y, in order, and the gradients of g_k - g_y."""
    if isinstance(nets, MLPEnsemble) and len(nets.weights) > 1:
        gap, pull, units = unit_pulls(nets, x, y)
        return gap, nets.layers[0].backward_by_rows(pull, units)
    logits, jacobian = nets.logits_and_jacobian(x)
    return _behind(logits, y).neg_(), _behind(jacobian, y)


def unit_pulls(
    nets: MLPEnsemble, x: Float[Tensor, "K n d"], y: Int[Tensor, "K n"]
) -> tuple[Float[Tensor, "K n others"], Float[Tensor, "K n others a"], Int[Tensor, " a"]]:
    """The same with gradients with respect to pre-activations of the first of several layers: of these units.

    Gradients are 0 for all its other units.
    """
    logits, rows, units = nets.logits_and_unit_gradients(x)
    if nets.is_binary:
        rows = torch.cat([torch.zeros_like(rows), rows], dim=2)
    return _behind(logits, y).neg_(), _behind(rows, y), units


def _behind(values: Float[Tensor, "K n c *b"], y: Int[Tensor, "K n"]) -> Float[Tensor, "K n c-1 *b"]:
    """The values of the classes other than y, less that of y."""
    shape, flat = values.shape, values.flatten(0, 2)
    true = y.flatten() + torch.arange(0, len(flat), shape[2], device=y.device)
    others = torch.ones(len(flat), dtype=torch.bool, device=y.device)
    of_y = flat.index_select(0, true).view(*shape[:2], 1, *shape[3:])
    others[true] = False
    rest = flat.index_select(0, others.nonzero()[:, 0])
    return rest.view(*shape[:2], shape[2] - 1, *shape[3:]).sub_(of_y)


def nearest_class(gap: Float[Tensor, "K n k"], size: Float[Tensor, "K n k"]) -> Int[Tensor, "K n 1"]:
    """The place of the class at the least distance |gap| / size, for gradients of these dual norms."""
    return torch.where(size > 0, gap.abs() / size, torch.inf).argmin(2, keepdim=True)


def of_class(rows: Float[Tensor, "K n k h"], which: Int[Tensor, "K n 1"]) -> Float[Tensor, "K n 1 h"]:
    """One class's row of every example."""
    return rows.gather(2, which[..., None].expand(*which.shape, rows.shape[3]))


def joined(parts: Sequence[Nearest]) -> Nearest:
    """Those of all examples."""
    names = ("gap", "size", "gradient")
    return Nearest(*(torch.cat([getattr(part, name) for part in parts], 1) for name in names))


def _nearest(
    nets: Ensemble, x: Tensor, y: Tensor, norms: Sequence[float], boxes: Collection[Box]
) -> dict[tuple[float, Box], Nearest]:
    (gap, pull), found = pulls(nets, x, y), {}
    for box in boxes:
        free = feasible(pull, x[:, :, None], box)
        for p in norms:
            size = norm(free, p=2 if p == 2 else 1)
            k = nearest_class(gap, size)
            found[p, box] = Nearest(
                gap.gather(2, k)[..., 0], size.gather(2, k)[..., 0], of_class(free, k)[:, :, 0]
            )
    return found
