"""What the machine can do: the rate of the matrix products that a network's passes consist of."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds(work: Callable[[], object], *, device: torch.device, repeats: int = 5) -> float:
    """Median wall-clock seconds of one call, after a warm-up call."""
    taken = []
    for _ in range(repeats + 1):
        _synchronise(device)
        started = time.perf_counter()
        work()
        _synchronise(device)
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def product_rate(*, dtype: torch.dtype, device: torch.device, size: int = 1536) -> float:
    """Floating-point operations per second of a large matrix product: nothing here can be faster."""
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device=device)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
