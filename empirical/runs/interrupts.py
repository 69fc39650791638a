"""When Ctrl-C and SIGTERM have to wait, and what the latter ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_held = 0  # contexts within which the main thread may not be ended now
_arrived = False  # whether SIGTERM came meanwhile


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers and containers send before they kill: it ends what Ctrl-C ends."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` in the main thread, unless somebody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    global _arrived
    if _held:
        _arrived = True
    else:
        raise Terminated


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the context ends, the main thread's; on Windows the latter alone.

    So does Ctrl-C for processes that are started in it. Modules of C that are half imported make other errors
    of it, or lose it.
    """
    global _held, _arrived
    masked = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else set()
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if _arrived and not _held:
        _arrived = False
        raise Terminated
