"""Works timed in turns and by processor time, so that a busy machine disturbs the comparison little.

With one thread, processor time is what the wall clock would show on an idle machine, but for shared caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from torch import Tensor

SLOW = 10.0  # seconds; what takes longer runs once

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timed:
    """Median processor seconds over ``runs`` runs, and the value that the work returned."""

    seconds: float
    value: Tensor
    runs: int


def in_turns(works: Mapping[Name, Callable[[], Tensor] | None], *, repeats: int) -> dict[Name, Timed]:
    """Every work's median processor time over ``repeats`` rounds of one run each; None is left out.

    A round before them warms up and is not counted, but for a work that takes longer than ``SLOW``, or where
    ``repeats`` is 0: that is the only run then.
    """
    taken: dict[Name, list[float]] = {name: [] for name, work in works.items() if work}
    values: dict[Name, Tensor] = {}
    for turn in range(repeats + 1):
        for name, work in works.items():
            if work is None or (turn and taken[name][0] > SLOW):
                continue
            started = time.process_time()
            values[name] = work()
            taken[name].append(time.process_time() - started)
    counted = {name: times[1:] or times for name, times in taken.items()}
    return {name: Timed(median(times), values[name], len(times)) for name, times in counted.items()}
