"""What all commands share on a terminal: errors of one line, a progress bar, a console."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from empirical.runs.interrupts import Terminated, terminable, uninterrupted

if TYPE_CHECKING:
    from empirical.runs.locations import Remote

_T = TypeVar("_T", int, float)

OK, VIOLATED, USAGE, PAUSED, BROKEN, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 70, 75, 130
UNREAD, TERMINATED = 141, 143  # as of programs that a closed pipe and SIGTERM ended


class LocationPath(click.Path):
    """A path as click checks it, or a URL, which becomes a ``Remote``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path or the location. Leaves with one line if the URL is none or its driver is missing."""
        if not isinstance(value, str) or "://" not in value:
            return super().convert(value, param, ctx)
        with one_line_errors():
            from empirical.runs.locations import locate

            return locate(value, argument=str(param.name) if param else "location")


class Program(click.Group):
    """The commands, whatever becomes of what they print."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Status 1, which says that a theorem is violated, is its own alone."""
        with terminable(), _printing():
            return super().invoke(ctx)


@contextmanager
def _printing() -> Iterator[None]:
    """Replace signs that a terminal lacks; an unread pipe, a full disk, Ctrl-C and SIGTERM end in order.

    So does what nobody foresaw, with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        yield
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # so that nothing is written when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)
    except OSError as error:
        click.echo(f"Error: {plain(error)}", err=True)
        sys.exit(USAGE)
    except KeyboardInterrupt as error:
        click.echo("Stopped.", err=True)
        sys.exit(stopped_by(error))
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise  # click ends in order by these
    except Exception:  # Python's own status for it would say that a theorem is violated
        traceback.print_exc()
        sys.exit(BROKEN)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors become one line on standard error and an exit status.

    2 for bad input, failing disks and stores, trainings that diverged; 75, as temporary failures have it,
    where the same command goes on.
    """
    with uninterrupted():
        from empirical.experiments.chains import NetworksLost
        from empirical.runs.locations import Unreachable
        from empirical.runs.workers import WorkersLost
        from theory.types import InvalidInput

    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads what is printed: no error of the work
    except (InvalidInput, NetworksLost, Unreachable, OSError, UnicodeEncodeError) as error:
        click.echo(f"Error: {plain(error)}", err=True)  # the last is a path's name
        sys.exit(USAGE)
    except WorkersLost as error:
        click.echo(f"Error: {error}; run the same command again to go on", err=True)
        sys.exit(UNFINISHED)
    except KeyboardInterrupt as error:
        click.echo("Stopped; the same command goes on from here.", err=True)
        sys.exit(stopped_by(error))


def stopped_by(error: KeyboardInterrupt) -> int:
    """The exit status of Ctrl-C or of SIGTERM."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def unless_read_only() -> Iterator[None]:
    """What follows from a whole table is left as it is where nothing can be written; one line says so."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ or error  # without the file's name
        read_only = isinstance(cause, OSError) and cause.errno == errno.EROFS
        if not (read_only or isinstance(cause, PermissionError)):
            raise
        click.echo(f"Note: files stay as they were: {plain(error)}", err=True)


def listed(*files: tuple[str, Path | Remote]) -> str:
    """A line of label and path for each file that is there: where nothing can be written one may not be."""
    return "".join(f"{label:8}{path}\n" for label, path in files if path.is_file())


def numbers(name: str, text: str | None, kind: type[_T]) -> tuple[_T, ...]:
    """Numbers joined by commas; none for no text. Raises: InvalidInput for anything else."""
    from theory.types import InvalidInput

    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidInput(f"{name} is {text!r}; give numbers joined by commas") from error


def plain(error: Exception) -> str:
    """An error's message in one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in str(error))


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere one line when a stage begins.

    Yields ``advance(stage, detail="", steps=1)``: so many more of ``total`` steps are done; the bar shows the
    detail too.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = console(stderr=True)
    if not shown.is_terminal:
        seen: set[str] = set()

        def announce(stage: str, detail: str = "", *, steps: int = 1) -> None:
            if stage not in seen:
                seen.add(stage)
                click.echo(f"{stage} ...", err=True)

        yield announce
        return
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=shown, transient=True) as bar:
        task = bar.add_task("start", total=total, detail="")

        def advance(stage: str, detail: str = "", *, steps: int = 1) -> None:
            bar.update(task, advance=steps, description=stage, detail=detail)

        yield advance


def console(*, stderr: bool = False):  # noqa: ANN201 - rich is imported late
    """A console on standard output, or on standard error."""
    from rich.console import Console

    def unread() -> None:
        raise BrokenPipeError  # as without rich, whose own answer is status 1

    shown = Console(stderr=stderr)
    shown.on_broken_pipe = unread
    return shown
