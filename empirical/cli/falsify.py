"""The hunt for counterexamples from the command line: ``sparse-robustness falsify``. It measures nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.completion import complete_conjecture, complete_law
from empirical.cli.terminal import OK, UNFINISHED, USAGE, VIOLATED, plain, stopped_by

if TYPE_CHECKING:
    from rich.table import Table

    from empirical.cli.hunt_book import HuntBook
    from theory.laws.hunt import Tally
    from theory.laws.law import Law

_FALSIFIED = VIOLATED
_MOST_JOBS = 1024
# Of 0 failures in n independent draws: the true share of failures is below 3/n with 95 % confidence.
_RULE_OF_THREE = 3


@click.command()
@click.argument("laws", nargs=-1, metavar="[LAW ...]", shell_complete=complete_law)
@click.option(
    "--examples",
    default=1000,
    show_default=True,
    metavar="N",
    help="Cases to try per law; simplifying a counterexample tries more.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    metavar="S",
    help="The same seed tries the same cases, with the same versions of this package and Hypothesis.",
)
@click.option("--jobs", type=int, metavar="J", help="Processes.  [default: one per core]")
@click.option(
    "--conjecture",
    "source",
    metavar="FILE.py|NAME",
    shell_complete=complete_conjecture,
    help="Hunt the conjectures in a file, which is run, or a shipped one (see --list), instead of the laws.",
)
@click.option("--list", "list_only", is_flag=True, help="List the laws and the shipped conjectures.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    help="Keep the table as data too, while the hunt goes on; the same command goes on where a file ends.",
)
def falsify(
    laws: tuple[str, ...],
    examples: int,
    seed: int,
    jobs: int | None,
    source: str | None,
    *,
    list_only: bool,
    out: Path | None,
) -> None:
    """Hunt for a counterexample to every LAW of the theory, or to a conjecture of your own.

    LAW is a name or a pattern such as 'relu.*'; all by default. Each law is tried on drawn cases and on
    changed ones that come ever closer to failing. The worst ratio of a bound is the smallest bound / truth
    seen, rounding included: a law holds where it is at least 1. That of an identity is its relative error.
    A counterexample is made as simple as possible and printed as a program that shows it; so is a case in
    which a conjecture raises an error.

    Ctrl-C prints the table so far; with --out, the same command then goes on from there, or with more
    examples from a finished one. Exit status: 0 nothing falsified, 1 a law or conjecture is, 2 bad usage,
    75 a process of the hunt was killed, 130 Ctrl-C, 143 SIGTERM: the same command goes on from there.
    """
    from empirical.runs.provenance import cores
    from theory.laws.claim import BadConjecture
    from theory.types import InvalidInput

    try:
        from empirical.cli.hunt_book import HuntBook
        from theory.laws import catalog, claim

        if list_only:
            _print_list()
            return
        if source and laws:
            raise InvalidInput(f"--conjecture {source} and the laws {' '.join(laws)} exclude each other")
        for name, value, least in (("examples", examples, 1), ("jobs", jobs, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise InvalidInput(f"{name} is {value}; give a whole number of at least {least}")
        if jobs is not None and jobs > _MOST_JOBS:
            raise InvalidInput(f"jobs is {jobs}; give at most {_MOST_JOBS:,} processes")
        if source and out is not None and out.exists():
            raise InvalidInput(f"{out} exists; a hunt for conjectures starts anew: name another file")
        load = partial(claim.load, source) if source else partial(catalog.select, laws)
        chosen = load()
        book = HuntBook.open(out, laws=chosen, examples=examples, seed=seed)
        ended = _hunt(load, book, examples=examples, jobs=jobs or cores(), seed=seed)
        results = [(law, book.tallies[law.name]) for law in chosen if law.name in book.tallies]
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except (InvalidInput, OSError) as error:
        click.echo(f"Error: {plain(error)}", err=True)
        if isinstance(error, BadConjecture) and error.program:
            click.echo(f"The simplest case found that shows this; run it:\n\n{error.program}")
        sys.exit(USAGE)
    _print_results(results, conjectures=source is not None)
    if ended == UNFINISHED:
        click.echo(f"Error: {_lost(out, conjectures=source is not None)}", err=True)
    elif ended:
        click.echo("Stopped; the table shows what was tried until then.", err=True)
    else:
        ended = _FALSIFIED if any(tally.failure for _, tally in results) else OK
    sys.exit(ended)


def _lost(out: Path | None, *, conjectures: bool) -> str:
    """What is kept of a hunt that lost a process, and how to go on."""
    if out is None:
        remedy = "run again, with --out FILE.csv to keep it"
    elif conjectures:
        remedy = f"{out} keeps it; run again with another file to start anew"
    else:
        remedy = f"{out} keeps it; run the same command again to go on"
    told = "a process of the hunt was killed (out of memory?); the table shows what was tried until then"
    return f"{told}; {remedy}"


def _hunt(load: partial, book: HuntBook, *, examples: int, jobs: int, seed: int) -> int:
    """Enter every round in the book; the status of a hunt that was stopped or lost a process, or 0."""
    from concurrent.futures.process import BrokenProcessPool

    from theory.laws.hunt import hunt

    left = sum(max(0, examples - book.tried.get(law.name, 0)) for law in load())
    rounds = hunt(load, examples=examples, jobs=jobs, base=seed, done=dict(book.tried))
    try:
        with _progress(left) as advance:
            for law, tally in rounds:
                before = book.tried.get(law.name, 0)
                book.enter(law, tally)
                advance(law.name, (examples if tally.failure else book.tried[law.name]) - before)
    except KeyboardInterrupt as error:
        return stopped_by(error)
    except BrokenProcessPool:
        return UNFINISHED
    finally:
        rounds.close()
        book.save()
    return OK


@contextmanager
def _progress(total: int) -> Iterator:
    """A bar on a terminal; elsewhere one line at the start."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"Trying {total:,} examples ...", err=True)
        yield lambda name, count: None
        return
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=total)
        yield lambda name, count: bar.update(task, advance=count, description=name)


def _print_list() -> None:
    from theory.laws import catalog, claim

    for law in catalog.LAWS:
        click.echo(f"{law.name:28}{law.kind:10}{law.statement}")
    click.echo("\nConjectures, for --conjecture:")
    for name in claim.shipped():
        for law in claim.load(name):
            click.echo(f"{name:38}{law.statement}")


def _print_results(results: list[tuple[Law, Tally]], *, conjectures: bool) -> None:
    from rich.console import Console

    from theory.laws.code import reproduction, summary

    console = Console()
    if console.is_terminal:
        console.print(_table(results))
    else:
        for law, tally in results:
            case = summary(tally.tightest) if tally.tightest else ""
            click.echo(
                f"{law.name:28} {law.kind:9} {tally.examples:>9,} examples  worst {_worst(law, tally):18} "
                f"{tally.seconds:8.1f} s  {case}".rstrip()
            )
    for law, tally in results:
        if tally.failure:
            click.echo(f"\nFALSIFIED  {law.name}: {law.statement}\n{_first_line(tally.failure.message)}")
            click.echo("The simplest counterexample found; run this:\n")
            click.echo(reproduction(law, tally.failure.case))
        elif conjectures:
            _print_evidence(law, tally)
    falsified = sum(tally.failure is not None for _, tally in results)
    tried = sum(tally.examples for _, tally in results)
    count = "Nothing" if not falsified else f"{falsified} of {len(results)}"
    kind = "conjectures" if conjectures else "laws"
    simplifying = ", with those that simplify a counterexample" if falsified else ""
    click.echo(f"{count} falsified in {tried:,} examples of {len(results)} {kind}{simplifying}.")


def _print_evidence(law: Law, tally: Tally) -> None:
    from theory.laws.code import reproduction

    click.echo(f"\nNo counterexample to {law.name} in {tally.examples:,} examples. This proves nothing.")
    if tally.examples:
        share = min(1.0, _RULE_OF_THREE / tally.examples)
        click.echo(
            "If they were independent draws of its strategies (the search also steers towards failures),\n"
            f"the next would fail with a probability below {share:.2g}, at 95 % confidence by the rule of\n"
            "three. This says nothing of cases that the strategies draw rarely or never."
        )
    if tally.tightest:
        click.echo(f"The tightest case has (larger + rounding) / smaller = {_worst(law, tally)}:\n")
        click.echo(reproduction(law, tally.tightest))


def _table(results: list[tuple[Law, Tally]]) -> Table:
    from rich.table import Table

    from theory.laws.code import summary

    table = Table("law", "statement", "kind", "examples", "worst ratio", "tightest case", "seconds")
    for column in (3, 4, 6):
        table.columns[column].justify = "right"
    for law, tally in results:
        table.add_row(
            law.name,
            law.statement.replace("[", "\\["),
            law.kind,
            f"{tally.examples:,}",
            _worst(law, tally),
            (summary(tally.tightest) if tally.tightest else "").replace("[", "\\["),
            f"{tally.seconds:.1f}",
            style="red" if tally.failure else None,
        )
    return table


def _worst(law: Law, tally: Tally) -> str:
    """The ratio closest to failing; digits beyond 1 are shown as what they are, rounding."""
    if tally.failure:
        return "FALSIFIED"
    if math.isnan(tally.ratio):
        return "holds"
    if law.kind == "identity":
        return f"error {tally.ratio:.1e}"
    return f"1 + {tally.ratio - 1:.1e}" if abs(tally.ratio - 1) < 1e-3 else f"{tally.ratio:.4g}"


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0]
