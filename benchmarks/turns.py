"""Works timed in turns and by processor time, so that a busy machine disturbs the comparison little.

With one thread, processor time is what the wall clock would show on an idle machine, but for shared caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

SLOW = 10.0  # seconds; what takes longer runs once

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")
TIMES = ("seconds", "least", "most", "runs")  # columns of a table


@dataclass(frozen=True)
class Timed(Generic[Value]):
    """Processor seconds of the runs that count, and the value that the last one returned."""

    times: tuple[float, ...]
    value: Value

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.times)

    def columns(self, share: int = 1) -> dict[str, object]:
        """Median, smallest and largest seconds over ``share``, and of how many runs.

        One run alone was not warmed up.
        """
        times = (self.seconds, min(self.times), max(self.times))
        return dict(zip(TIMES, (*(f"{t / share:.3g}" for t in times), len(self.times)), strict=True))


def in_turns(works: Mapping[Name, Callable[[], Value] | None], *, repeats: int) -> dict[Name, Timed[Value]]:
    """Every work's processor times over ``repeats`` rounds of one run each; None is left out.

    A round before them warms up and is not counted, but for a work that takes longer than ``SLOW``, or where
    ``repeats`` is 0: that is the only run then.
    """
    taken: dict[Name, list[float]] = {name: [] for name, work in works.items() if work}
    values: dict[Name, Value] = {}
    for turn in range(repeats + 1):
        for name, work in works.items():
            if work is None or (turn and taken[name][0] > SLOW):
                continue
            started = time.process_time()
            values[name] = work()
            taken[name].append(time.process_time() - started)
    return {name: Timed(tuple(times[1:] or times), values[name]) for name, times in taken.items()}
