"""A run in pieces: the time given to it, after which it stops where it can go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from theory.types import InvalidInput


class OutOfTime(Exception):  # noqa: N818 - nothing went wrong
    """The time is over; what is done is on disk, and the same call goes on from there."""


@dataclass(frozen=True)
class Deadline:
    """A time of the machine's monotonic clock, which all its processes share; never by default."""

    at: float = math.inf

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raises: OutOfTime once it has passed."""
        if self.over:
            raise OutOfTime


NEVER = Deadline()


def deadline_in(minutes: float | None, *, address: str | None = None) -> Deadline:
    """The deadline so many minutes from now; never if None.

    Raises: InvalidInput unless they are positive, or for workers at an ``address``: other machines have other
    clocks.
    """
    if minutes is None:
        return NEVER
    if address is not None:
        raise InvalidInput(
            f"minutes is {minutes}; workers at {address} cannot be stopped by it, leave it out"
        )
    if not 0 < minutes < math.inf:
        raise InvalidInput(f"minutes is {minutes}; give a positive number, or leave it out")
    return Deadline(time.monotonic() + 60 * minutes)
