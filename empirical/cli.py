"""The command line. Heavy imports wait until a command runs, so that help is immediate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.falsify import falsify

if TYPE_CHECKING:
    import pandas as pd

# Rows of a violated theorem that the terminal names; the table has all.
_NAMED = 20
_OK, _VIOLATED, _USAGE, _INTERRUPTED = 0, 1, 2, 130


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001
    if asked:
        from empirical.experiment import package_version

        click.echo(f"sparse-robustness {package_version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """What weight sparsity does to adversarial robustness: theorems, measurements, and their agreement.

    Exit status: 0 no theorem is violated, 1 one is, 2 bad usage or input.
    """


main.add_command(falsify)


@main.command()
@click.option(
    "--data",
    default="digits",
    show_default=True,
    metavar="NAME|FILE.npz",
    help="scikit-learn's digits, or a file with x_train, y_train, x_test, y_test (uint8 or in [0, 1]).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run; another run's is never overwritten.  [default: results/DATA-SETTINGS]",
)
@click.option("--seeds", default=5, show_default=True, help="Networks per condition and sparsity.")
@click.option(
    "--sparsities",
    metavar="A,B,...",
    help="Fractions of weights to remove, rising from 0.  [default: 13 values from 0 to 0.99]",
)
@click.option(
    "--pair",
    nargs=2,
    type=int,
    default=(1, 7),
    show_default=True,
    metavar="I K",
    help="The two classes of the binary problem and of the random-mask theorem.",
)
@click.option("--eps", default=0.1, show_default=True, help="Step of the fast gradient sign method.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train and attack; auto takes a CUDA GPU if there is one.",
)
def verify(
    data: str,
    out: Path | None,
    seeds: int,
    sparsities: str | None,
    pair: tuple[int, int],
    eps: float,
    device: str,
) -> None:
    """Train, prune, attack, compute the theory, and judge claim by claim whether they agree.

    Three families (binary linear, multi-class linear, ReLU 300-100) are trained dense and pruned by
    magnitude or at random through every sparsity; every network is attacked at every test example and
    held against the theorems. The run leaves results.parquet, figures (SVG, PNG) and report.html.

    A run that was killed goes on where it stopped; a finished one is only reported again.
    """
    from empirical.report import claims_table, write_report
    from theory.types import InvalidInput

    started = time.perf_counter()
    with _one_line_errors():
        from empirical.datasets import load
        from empirical.experiment import SPARSITIES, Settings
        from empirical.verify import choose_device, default_folder, total_steps
        from empirical.verify import verify as run

        try:
            grid = SPARSITIES if sparsities is None else tuple(map(float, sparsities.split(",")))
        except ValueError as error:
            raise InvalidInput(f"sparsities is {sparsities!r}; give numbers joined by commas") from error
        settings = Settings(data=data, seeds=seeds, sparsities=grid, pair=pair, eps=eps)
        chosen = choose_device(device)
        folder = out or default_folder(settings, load(data), chosen)
        with _progress(total_steps(settings)) as advance:
            outcome = run(settings, folder, device=chosen, advance=advance)
        report = write_report(folder, outcome.networks, outcome.claims, outcome.violations, outcome.settings)
    console = _console()
    console.print(claims_table(outcome.claims))
    _print_violations(outcome.violations)
    seconds = time.perf_counter() - started
    summary = f"Report  {report}\nTable   {outcome.path}\nTook {seconds:.0f} s on {chosen.type}."
    console.print(summary, highlight=False, soft_wrap=True)
    sys.exit(_OK if outcome.violations.empty else _VIOLATED)


@main.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def claims(table: Path, *, markdown: bool) -> None:
    """Judge the claims from the results TABLE of an earlier run."""
    with _one_line_errors():
        import pyarrow.compute as pc

        from empirical.claims import judge, violations
        from empirical.report import claims_markdown, claims_table
        from empirical.results import read_table

        content = read_table(table)
        judged = judge(content.filter(pc.field("example").is_null()).to_pandas())
    if markdown:
        click.echo(claims_markdown(judged))
    else:
        _console().print(claims_table(judged))
    sys.exit(_OK if violations(content).empty else _VIOLATED)


def _print_violations(failed: pd.DataFrame) -> None:
    console = _console()
    if failed.empty:
        console.print("No theorem is violated.", highlight=False)
        return
    theorems = ", ".join(sorted(failed["theorem"].unique()))
    console.print(
        f"{len(failed):,} cases violate a theorem ({theorems}); the largest excesses:", highlight=False
    )
    console.print(failed.head(_NAMED).to_string(index=False), highlight=False, soft_wrap=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input and failing disks become one line on standard error and exit status 2."""
    from empirical.training import TrainingDiverged
    from theory.types import InvalidInput

    try:
        yield
    except (InvalidInput, TrainingDiverged, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_USAGE)
    except KeyboardInterrupt:
        click.echo("Stopped; the same command goes on from here.", err=True)
        sys.exit(_INTERRUPTED)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; elsewhere one line when a stage begins."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def announce(stage: str) -> None:
            if stage not in seen:
                seen.add(stage)
                click.echo(f"{stage} ...", err=True)

        yield announce
        return
    columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=total)
        yield lambda stage: bar.update(task, advance=1, description=stage)


def _console(*, stderr: bool = False):  # noqa: ANN202 - rich is imported late
    from rich.console import Console

    return Console(stderr=stderr)
