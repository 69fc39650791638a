"""How far a run is: the units that are on disk, and what this machine's processes are doing now."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from empirical.results import read_table
from empirical.runs.locations import Location, Unreachable, present
from theory.types import InvalidInput

# Hears the stage, and a detail such as the networks' accuracy: of every unit that is done, or within one.
Advance = Callable[[str, str], None]
# Seconds between looks at what other processes have done, and between the notes of one of them.
_LOOK = 0.5


class Progress:
    """Tells ``advance`` of every unit of ``paths`` that is on disk, ``tell`` of what is done within one."""

    def __init__(self, paths: Sequence[Location], advance: Advance, tell: Advance) -> None:
        self._waiting, self._advance, self._hear = dict.fromkeys(paths), advance, tell
        self.commits: set[str] = set()  # of the package, that the rows of those units name

    def look(self) -> None:
        """Tell of every unit that has appeared since, whichever process wrote it."""
        for path in present(list(self._waiting)):
            self._tell(path)

    def reached(self, units: Sequence[Location]) -> None:
        """Tell of those units, made one after the other, that are there now: no folder is listed for it."""
        for path in units:
            if path in self._waiting:
                if not path.is_file():
                    return
                self._tell(path)

    def _tell(self, path: Location) -> None:
        rows = read_table(path)
        del self._waiting[path]
        self.commits.update(rows["commit"].unique().to_pylist())
        self._advance(*_stage(rows))

    @contextmanager
    def watching(self) -> Iterator[Path]:
        """Look again and again while the work is done elsewhere; yields the folder for the workers' notes.

        What cannot be read now is looked at the next time.
        """
        stop = threading.Event()
        with TemporaryDirectory(prefix="sparse-robustness-", ignore_cleanup_errors=True) as folder:
            notes = Path(folder)

            def keep_looking() -> None:
                heard = None
                while not stop.wait(_LOOK):
                    with suppress(OSError, InvalidInput, Unreachable):
                        self.look()
                        note = _newest(notes)
                        if note and note != heard:
                            heard = note
                            self._hear(*note)

            watcher = threading.Thread(target=keep_looking, daemon=True)
            watcher.start()
            try:
                yield notes
            finally:
                stop.set()
                watcher.join()


class Notes:
    """A worker's words about what it does now, in a file of its own; where there is no folder, none."""

    def __init__(self, folder: Path | None, stage: str) -> None:
        self._folder, self._stage, self._written = folder, stage, -_LOOK

    def write(self, detail: str) -> None:
        """Replace what was written before, unless that was just now."""
        now = time.monotonic()
        if self._folder is None or now - self._written < _LOOK:
            return
        self._written = now
        # Another machine has no such folder, and it goes when the run ends: nobody reads the note then.
        with suppress(OSError):
            (self._folder / str(os.getpid())).write_text(f"{self._stage}\n{detail}", encoding="utf-8")


def _newest(folder: Path) -> tuple[str, str] | None:
    """The stage and detail that were noted last; None if nothing was, or is being written."""
    newest = max(folder.iterdir(), key=lambda note: note.stat().st_mtime_ns, default=None)
    stage, _, detail = newest.read_text(encoding="utf-8").partition("\n") if newest else ("", "", "")
    return (stage, detail) if detail else None


def _stage(rows: pa.Table) -> tuple[str, str]:
    """The stage and the accuracy that a unit's rows speak of."""
    first = rows.slice(0, 1).to_pylist()[0]
    clean = (pc.field("quantity") == "accuracy") & (pc.field("method") == "clean")
    accuracy = rows.filter(clean)["value"].to_numpy()
    if not len(accuracy):
        return f"{first['family']} random masks", ""
    mean = accuracy.mean()
    return f"{first['family']} {first['pruning']}", f"sparsity {first['sparsity']:.3g}, accuracy {mean:.3f}"
