"""The law of every reader: it returns something valid or refuses in one line, soon, in little memory.

Memory is what the process holds at most while it reads (VmHWM of Linux, which counts what Arrow, PyTorch and
decompressors take), above what it held before; where the system does not tell, only RLIMIT_AS binds. Time is
the processor's, since other work may slow the clock.
"""

from __future__ import annotations

import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paper_figures.files import BadTable
from theory.types import InvalidInput

MIB = 2**20
# A refusal may take so much, and several times the file: buffers, decompressors, a library's first use.
ROOM, TIMES = 96 * MIB, 16
# A reading may take several times what it returns as well: one copy in another type, one while joining.
COPIES = 6
# Address space beyond what is mapped when reading begins; more is refused by the system, not granted.
ADDRESSES = 8 * 2**30
SECONDS, ALARM = 20, 120
LONGEST_LINE = 3000
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Broken(AssertionError):
    """A reader broke the law; the message says how."""


def examine(read: Callable[[], int], *, stored: int, canary: Path) -> str:
    """Whether a file of ``stored`` bytes is "read" or "refused". ``read`` returns the bytes of its result.

    Raises: Broken for any other exception, a warning, a message of several lines, too much time or memory,
    or if there is a file ``canary``, which only code of the file's author would make.
    """
    started, before = time.process_time(), _begun()
    returned = 0
    with warnings.catch_warnings(), _limited():
        warnings.simplefilter("error")
        try:
            returned, outcome = read(), "read"
        except (InvalidInput, BadTable) as error:
            outcome = "refused"
            _check_line(str(error), stored)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {str(error)[:500]}") from error
    grown, seconds = _held("VmHWM") - before, time.process_time() - started
    if canary.exists():
        canary.unlink()
        raise Broken("code ran")
    if grown > ROOM + TIMES * stored + COPIES * returned:
        raise Broken(f"{outcome}, but {grown / MIB:.0f} MiB were taken for a file of {stored:,} bytes")
    if seconds > SECONDS:
        raise Broken(f"{outcome}, but after {seconds:.0f} s of the processor")
    return outcome


def _check_line(message: str, stored: int) -> None:
    if len(message) > LONGEST_LINE + 8 * stored or any(ord(c) < 32 or ord(c) == 127 for c in message):
        raise Broken(f"refused, but not in one plain line: {message[:500]!r}")


@contextmanager
def _limited() -> Iterator[None]:
    """No hang and no allocation that would harm the machine; the limits are lifted again."""

    def hung(*_: object) -> None:
        raise TimeoutError(f"hangs: {ALARM} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = _held("VmSize")
    previous = signal.signal(signal.SIGALRM, hung)
    signal.alarm(ALARM)
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _begun() -> int:
    """Bytes that the process holds now, from which its peak is counted anew."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
    return _held("VmHWM")


def _held(entry: str) -> int:
    if not _STATUS.exists():
        return 0
    return 1024 * int(_STATUS.read_text().partition(f"{entry}:")[2].split()[0])
