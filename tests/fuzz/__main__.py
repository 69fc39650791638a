"""Fuzz every reader of outside files and the command line: ``python -m tests.fuzz --minutes 5``.

Each gets an equal share of the time, in a process of its own, so that a crash or a hang is a failure like any
other. Exit status 1 if a reader breaks the law; the file or the line that did it stays in the folder that is
named.
"""

from __future__ import annotations

import collections
import csv
import itertools
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz.commands import COMMANDS, lines, prepare, try_line
from tests.fuzz.hostile import CANARY, PROGRAM
from tests.fuzz.law import Broken, examine
from tests.fuzz.readers import READERS

_COMMAND = "command "
NAMES = (*READERS, *(_COMMAND + name for name in COMMANDS))
OUTCOMES = ("read", "refused", "failures")
# Examples of a round; between rounds the time is looked at.
_ROUND = 50
# Seconds beyond its share after which a reader hangs.
_PATIENCE = 300


@click.command()
@click.option("--minutes", type=float, default=5, show_default=True, help="For all readers together.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only these.")
@click.option("--seed", "start", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table here.")
def main(minutes: float, only: tuple[str, ...], start: int, out: Path | None) -> None:
    """Try mutants of good files, files made to harm, and command lines on whatever reads them."""
    torch.set_num_threads(1)
    PROGRAM()  # made once, before the processes part
    names = only or NAMES
    share = 60 * minutes / len(names)
    table = [_row(name, share, start) for name in names]
    if out:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    sys.exit(any(row["failures"] for row in table))


def _row(name: str, share: float, start: int) -> dict[str, object]:
    """One row of the table: what became of all examples of one reader."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    began = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=_work, args=(name, share, start, folder))
    child.start()
    child.join(share + _PATIENCE)
    ended = child.exitcode
    if ended is None:
        child.kill()
        child.join()
    told = folder / "counts"
    counts = dict.fromkeys(OUTCOMES, 0) | (json.loads(told.read_text()) if told.exists() else {})
    if ended != 0:  # the last example is there
        counts["failures"] += 1
        click.echo(f"{name} {'hangs' if ended is None else f'crashes ({ended})'}: see {folder}", err=True)
    seconds = round(time.perf_counter() - began, 1)
    row: dict[str, object] = {"reader": name, "examples": sum(counts.values()), **counts, "seconds": seconds}
    click.echo("  ".join(f"{key} {value}" for key, value in row.items()))
    return row


def _work(name: str, share: float, start: int, folder: Path) -> None:
    """In the child: the hostile files, then rounds of drawn examples until the time is over."""
    os.chdir(folder)
    tell = _reader(name, folder) if name in READERS else _command(folder)
    counts, end = collections.Counter(), time.monotonic() + share
    for example in _examples(name, start, end):
        try:
            counts[tell(example)] += 1
        except Broken as error:
            counts["failures"] += 1
            (folder / f"failure-{counts['failures']}").write_bytes(_written(example))
            click.echo(f"{name}: {error}: see {folder}/failure-{counts['failures']}", err=True)
        (folder / "counts").write_text(json.dumps(counts))


def _examples(name: str, start: int, end: float) -> Iterator[Any]:
    """Examples until the time is over, the hostile files first; each round has another seed."""
    if name in READERS:
        yield from (make() for make in READERS[name].hostile.values())
    strategy = READERS[name].cases() if name in READERS else lines(name.removeprefix(_COMMAND))
    for round_ in itertools.count():
        for example in _drawn(strategy, start + round_):
            if time.monotonic() > end:
                return
            yield example


def _drawn(strategy: SearchStrategy, number: int) -> list[Any]:
    """The examples of one round, the same for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=_ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def _reader(name: str, folder: Path) -> Callable[[bytes], str]:
    reader, path = READERS[name], folder / READERS[name].file

    def tell(content: bytes) -> str:
        path.write_bytes(content)
        return examine(lambda: reader.read(path), stored=len(content), canary=Path(CANARY))

    return tell


def _command(folder: Path) -> Callable[[list[str]], str]:
    prepare(folder)

    def tell(line: list[str]) -> str:
        (folder / "line").write_bytes(_written(line))
        return try_line(line)

    return tell


def _written(example: bytes | list[str]) -> bytes:
    if isinstance(example, bytes):
        return example
    return shlex.join(example).encode(errors="surrogateescape")


if __name__ == "__main__":
    main()
