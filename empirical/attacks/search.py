"""The smallest step along a path that succeeds, found by a scan and a bisection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from empirical.attacks.active import ActiveSet, Batch

# Where the scan starts and ends, in units of the linearised distance, and the factor between its steps.
_START, _END, _FACTOR = 0.25, 64.0, 1.1
_HALVINGS = 20
# A point is put this many times the precision beyond the boundary, for logits in float64 to agree.
PRECISIONS = 64

# Points (k, m, d) of a batch, its ways (k, m, d) and the sizes (k, m) of the steps along them.
Path = Callable[[Batch, Tensor, Tensor], Tensor]


def smallest_step(
    batch: Batch, way: Float[Tensor, "k m d"], path: Path, *, unit: Float[Tensor, "k m"], largest: float
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The point after the smallest step that succeeds, and where there is one.

    Steps grow by a tenth from a quarter of ``unit`` to 64 times that, ``largest`` at most; the first success
    is bisected against the failure before it. An upper bound: success need not be monotone in the step, and
    an interval of success shorter than a tenth can be missed. Nothing is tried where ``unit`` is 0.
    """
    step, failed = (_START * unit).clamp(max=largest), torch.zeros_like(unit)
    end = (_END * unit).clamp(max=largest)
    found = torch.full_like(unit, torch.inf)
    unfinished = unit > 0
    while unfinished.any():
        active = ActiveSet.of(unfinished)
        part, here = batch.part(active), active.take(step)
        hit = part.success(path(part, active.take(way), here))
        active.put(found, here, hit)
        active.put(failed, here, ~hit)
        unfinished = found.isinf() & (unit > 0) & (failed < end)
        step = torch.where(unfinished, (_FACTOR * step).minimum(end), step)
    success = found.isfinite()
    points = batch.start.clone()
    if success.any():
        active = ActiveSet.of(success)
        nearest, hit = bisect(
            batch.part(active), active.take(way), path, active.take(failed), active.take(found)
        )
        active.put(points, nearest, hit)
    return points, success


def bisect(
    batch: Batch,
    way: Float[Tensor, "k m d"],
    path: Path,
    failed: Float[Tensor, "k m"],
    found: Float[Tensor, "k m"],
) -> tuple[Float[Tensor, "k m d"], Bool[Tensor, "k m"]]:
    """The point of the smallest successful step known after bisecting between a failure and a success."""
    for _ in range(_HALVINGS):
        middle = (failed + found) / 2
        hit = batch.success(path(batch, way, middle))
        failed, found = torch.where(hit, failed, middle), torch.where(hit, middle, found)
    beyond = path(batch, way, found * (1 + PRECISIONS * torch.finfo(found.dtype).eps))
    clear = batch.success(beyond)
    points = torch.where(clear[..., None], beyond, path(batch, way, found))
    return points, clear | batch.success(points)
