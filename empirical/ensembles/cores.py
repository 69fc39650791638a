"""Spread independent parts of an ensemble over the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def on_cores(work: Callable[[Part], Result], parts: Sequence[Part], *, device: torch.device) -> list[Result]:
    """``work`` of every part, in order: one thread per core on a CPU, one after the other elsewhere.

    PyTorch runs each part on one core. At these sizes that is faster than many cores on one operation, and
    on a busy machine by far: cores that share an operation wait for the slowest at its every step. An
    exception in a part is raised here.
    """
    cores = torch.get_num_threads()
    if device.type != "cpu" or min(cores, len(parts)) < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(cores)


def shares(members: int, *, device: torch.device, at_most: int | None = None) -> list[range]:
    """Members 0 .. members-1 in consecutive parts: one per core of a CPU, one in all elsewhere.

    More where ``at_most`` says how many members a part may have.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    size = -(-members // cores)
    size = max(1, min(size, at_most or size))
    return [range(start, min(start + size, members)) for start in range(0, members, size)]
