"""What a hunt for counterexamples has found so far, kept in a CSV file that a later hunt goes on with."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from empirical.runs.locations import write_atomically
from empirical.runs.provenance import commit
from theory.laws.code import expression
from theory.laws.hunt import ROUND, Tally
from theory.laws.law import Law
from theory.types import InvalidInput

COLUMNS: tuple[str, ...] = (
    *("law", "kind", "tried", "examples", "worst", "falsified", "statement", "tightest", "seconds", "seed"),
    "commits",
)
_SPACING = 10.0  # seconds between two writings of the file


@dataclass
class HuntBook:
    """Of every law by name: its ``tallies``, and how many examples were ``tried``, rejected ones included.

    Cases of earlier hunts are kept as text, which is never evaluated.
    """

    path: Path | None
    examples: int
    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    commit: str = field(default_factory=commit)
    _rows: dict[str, dict[str, str]] = field(default_factory=dict)
    _hunted: dict[str, Law] = field(default_factory=dict)
    _saved: float = 0.0

    @classmethod
    def open(cls, path: Path | None, *, laws: Sequence[Law], examples: int, seed: int) -> HuntBook:
        """An empty book, or that of an earlier hunt in the file.

        Raises: InvalidInput for a file that is no such table, has another seed or a counterexample, or has
        broken off within a round and so cannot be continued; OSError if it cannot be written.
        """
        book = cls(path, examples, seed)
        if path is None:
            return book
        if path.exists():
            book._rows = _read(path)
        for name, row in ((law.name, book._rows[law.name]) for law in laws if law.name in book._rows):
            book._continue(name, row)
        book.save()
        return book

    def _continue(self, name: str, row: dict[str, str]) -> None:
        """Take in the row of a law that this hunt is about."""
        where = f"{self.path}, {name}"
        tried, tally = self._told(name, row)
        if row["falsified"] != "False":
            raise InvalidInput(f"{where} is falsified there; mend the law and hunt into another file")
        if tried % ROUND and tried < self.examples:
            raise InvalidInput(
                f"{where}: {tried} examples were tried, and only whole rounds of {ROUND} can be continued; "
                "name another file"
            )
        self.tallies[name], self.tried[name] = tally, tried

    def _told(self, name: str, row: dict[str, str]) -> tuple[int, Tally]:
        """What the row of a law says was tried. Raises: InvalidInput if that was with another seed."""
        where = f"{self.path}, {name}"
        if row["seed"] != str(self.seed):
            raise InvalidInput(f"{where}: seed is {row['seed']}, not {self.seed}; name another file")
        try:
            tally = Tally(int(row["examples"]), ratio=float(row["worst"]), seconds=float(row["seconds"]))
            return int(row["tried"]), tally
        except ValueError as error:
            raise InvalidInput(f"{where} is no row of a hunt ({error}); name another file") from error

    def enter(self, law: Law, tally: Tally) -> None:
        """One more round of a law."""
        name = law.name
        self.tallies[name] = self.tallies.get(name, Tally()).plus(tally, law)
        self.tried[name] = min(self.examples, self.tried.get(name, 0) + ROUND)
        self._hunted[name] = law
        if time.monotonic() - self._saved > _SPACING:
            self.save()

    def save(self) -> None:
        """Bring the file up to date, whole or not at all; what another hunt has entered there stays.

        Of a law that both hunt the row that says more is kept. Raises: OSError if it cannot be written,
        InvalidInput if another hunt has put no such table there, or hunts the same law with another seed.
        """
        if self.path is None:
            return
        with _alone(self.path.parent):
            there = _read(self.path) if self.path.exists() else {}
            own = {name: self._row(law) for name, law in self._hunted.items()}
            self._rows |= own
            further = {name for name in own.keys() & there.keys() if self._says_more(name, there[name])}
            rows = self._rows | there | {name: own[name] for name in own.keys() - further}
            write_atomically(self.path, partial(_write, rows))
        self._saved = time.monotonic()

    def _says_more(self, name: str, row: dict[str, str]) -> bool:
        """Whether the row in the file is of more examples than ours, or it alone has a counterexample."""
        tried, _ = self._told(name, row)
        failed = self.tallies[name].failure is not None
        return (row["falsified"] != "False", tried) > (failed, self.tried[name])

    def _row(self, law: Law) -> dict[str, str]:
        tally, before = self.tallies[law.name], self._rows.get(law.name, {})
        case = tally.failure.case if tally.failure else tally.tightest
        text = " ".join(expression(tuple(case.items())).split()) if case else before.get("tightest", "")
        commits = dict.fromkeys([*before.get("commits", "").split(), self.commit])
        return {
            "law": law.name,
            "kind": law.kind,
            "tried": str(self.tried[law.name]),
            "examples": str(tally.examples),
            "worst": repr(tally.ratio),
            "falsified": str(tally.failure is not None),
            "statement": law.statement,
            "tightest": text,
            "seconds": f"{tally.seconds:.3f}",
            "seed": str(self.seed),
            "commits": " ".join(commits),
        }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Another hunt that would write in the folder waits; not where there are no locks, as on Windows."""
    if os.name != "posix":
        yield
        return
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without them
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _write(rows: dict[str, dict[str, str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows.values())


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a table by law. Raises: InvalidInput if it is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
            header_only = not rows and path.read_text(encoding="utf-8").startswith(",".join(COLUMNS))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is no table of a hunt ({error}); name another file") from error
    complete = all(tuple(row) == COLUMNS and None not in row.values() for row in rows)
    if not (rows or header_only) or not complete:
        raise InvalidInput(f"{path} is no table of a hunt; name another file")
    return {row["law"]: row for row in rows}
