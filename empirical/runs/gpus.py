"""Which GPUs of this machine the processes of a run have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import takewhile

from theory.types import InvalidInput

# What CUDA reads in a process, before its first use, to know the only GPUs that are there.
VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    named = environment.get(VISIBLE)
    if named is None:
        import torch  # here: workers that are not yet told their GPU read this file

        return [str(i) for i in range(torch.cuda.device_count())]
    names = [name.strip() for name in named.split(",")]
    return list(takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it


def gpu_of_each(workers: int, *, share: float | None) -> list[str]:
    """The GPU of each of the workers of this machine: the next one for each, and again from the first.

    A GPU has ``1 / share`` workers at most; where ``share`` is None, as few as can be.
    Raises: InvalidInput if the GPUs do not hold so many.
    """
    gpus = visible_gpus()
    if not gpus:
        raise InvalidInput("device is 'cuda', but this process sees no GPU; use --device cpu")
    if share is not None and workers > len(gpus) * int(1 / share):
        raise InvalidInput(
            f"workers is {workers}, but with {share:g} GPUs for each, the {len(gpus)} of this machine hold "
            f"{len(gpus) * int(1 / share)}; use no more workers, or a smaller --gpus"
        )
    return [gpus[i % len(gpus)] for i in range(workers)]
