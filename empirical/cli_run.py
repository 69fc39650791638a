"""The commands that train: ``verify``, the main job, and ``run``, any experiment file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.completion import complete_data, complete_experiment
from empirical.terminal import OK, PAUSED, VIOLATED, console, one_line_errors, progress

if TYPE_CHECKING:
    import pandas as pd

    from empirical.experiments import Experiment

# What `verify` runs: the three families of classifiers.
MAIN_JOB = ("digits-linear-binary", "digits-linear", "digits-mlp")
# Rows of a violated theorem that the terminal names; the table has all.
_NAMED = 20


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands take."""
    options = (
        click.option(
            "--data",
            metavar="NAME|FILE|FOLDER",
            shell_complete=complete_data,
            help="Another data set: digits, mnist, fashion-mnist, cifar10, a file with x_train, y_train, "
            "x_test and y_test, or shards.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the run; another run's is never overwritten.  [default: results/NAME-SETTINGS]",
        ),
        click.option("--seeds", type=int, help="Networks per condition and sparsity."),
        click.option("--sparsities", metavar="A,B,...", help="Fractions to remove, rising from 0."),
        click.option("--eps", type=float, help="Step of the fast gradient sign method."),
        click.option(
            "--pair",
            nargs=2,
            type=int,
            metavar="I K",
            help="The two classes of the binary problem and of the random-mask theorem.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to train and attack; auto takes a CUDA GPU if there is one.",
        ),
        click.option(
            "--workers",
            type=int,
            help="Processes that share the work on a CPU.  [default: one per core; 1 on a GPU]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_shared
def verify(
    data: str | None,
    out: Path | None,
    seeds: int | None,
    sparsities: str | None,
    eps: float | None,
    pair: tuple[int, int] | None,
    device: str,
    workers: int | None,
) -> None:
    """Train, prune, attack, compute the theory, and judge claim by claim whether they agree.

    Three families (binary linear, multi-class linear, ReLU 300-100) are trained on scikit-learn's digits
    dense and pruned by magnitude or at random through every sparsity; every network is attacked at every
    test example and held against the theorems. The run leaves results.parquet, figures (SVG, PNG) and
    report.html.

    A run that was killed goes on where it stopped; a finished one is only reported again.
    """
    changes = {"data": data, "seeds": seeds, "sparsities": sparsities, "eps": eps, "pair": pair}
    with one_line_errors():
        from empirical.experiments import read_experiment

        chosen = [_changed(read_experiment(name), changes) for name in MAIN_JOB]
    _execute(chosen, out, device=device, workers=workers)


@click.command()
@click.argument("experiments", nargs=-1, metavar="EXPERIMENT...", shell_complete=complete_experiment)
@click.option("--list", "listed", is_flag=True, help="List the shipped experiments and exit.")
@click.option("--quick", is_flag=True, help="The reduced size that the experiment's [quick] table gives.")
@click.option("--test-examples", type=int, help="Attack this many test examples.")
@click.option("--backend", default="loky", show_default=True, help="joblib's backend for several workers.")
@click.option(
    "--minutes",
    type=float,
    help="Stop after so many minutes, with exit status 3; the same command goes on from there.",
)
@_shared
def run(
    experiments: tuple[str, ...],
    *,
    listed: bool,
    quick: bool,
    test_examples: int | None,
    backend: str,
    minutes: float | None,
    data: str | None,
    out: Path | None,
    seeds: int | None,
    sparsities: str | None,
    eps: float | None,
    pair: tuple[int, int] | None,
    device: str,
    workers: int | None,
) -> None:
    """Run EXPERIMENT, a shipped one by name or your own .toml file; several make one results table.

    Leaves results.parquet, figures and report.html. A run that was killed goes on where it stopped.
    """
    if listed:
        _print_catalog()
        return
    if not experiments:
        raise click.UsageError("name an experiment, or --list them")
    changes = {"data": data, "seeds": seeds, "sparsities": sparsities, "eps": eps, "pair": pair}
    changes["test_examples"] = test_examples
    with one_line_errors():
        from empirical.experiments import read_experiment

        chosen = [_changed(read_experiment(name, quick=quick), changes) for name in experiments]
    _execute(chosen, out, device=device, workers=workers, backend=backend, minutes=minutes)


def _changed(experiment: Experiment, changes: dict[str, object]) -> Experiment:
    """The experiment with the entries that the command line replaces."""
    from theory.types import InvalidInput

    given = {name: value for name, value in changes.items() if value is not None}
    if "sparsities" in given:
        try:
            given["sparsities"] = tuple(map(float, str(given["sparsities"]).split(",")))
        except ValueError as error:
            message = f"sparsities is {given['sparsities']!r}; give numbers joined by commas"
            raise InvalidInput(message) from error
    return replace(experiment, **given)  # type: ignore[arg-type]


def _execute(
    experiments: list[Experiment],
    out: Path | None,
    *,
    device: str,
    workers: int | None,
    backend: str = "loky",
    minutes: float | None = None,
) -> None:
    """Run the experiments, report, and exit."""
    started = time.perf_counter()
    with one_line_errors():
        from empirical.deadline import OutOfTime, deadline_in
        from empirical.provenance import choose_device, cores, log_command
        from empirical.report import claims_table, write_report
        from empirical.run import default_folder, run_experiments, total_steps

        deadline, chosen = deadline_in(minutes), choose_device(device)
        processes = workers if workers is not None else cores() if chosen.type == "cpu" else 1
        folder = out or default_folder(experiments, chosen)
        try:
            with progress(total_steps(experiments, chosen)) as advance:
                outcome = run_experiments(
                    experiments,
                    folder,
                    device=chosen,
                    workers=processes,
                    backend=backend,
                    advance=advance,
                    deadline=deadline,
                )
        except OutOfTime:
            log_command(folder, seconds=time.perf_counter() - started, workers=processes, device=chosen)
            click.echo(f"Stopped after {minutes:g} minutes; the same command goes on from here.", err=True)
            sys.exit(PAUSED)
        log_command(folder, seconds=time.perf_counter() - started, workers=processes, device=chosen)
        report = write_report(folder, outcome.networks, outcome.claims, outcome.violations, outcome.settings)
    shown = console()
    shown.print(claims_table(outcome.claims))
    _print_violations(outcome.violations)
    seconds = time.perf_counter() - started
    summary = f"Report  {report}\nTable   {outcome.path}\nTook {seconds:.0f} s on {chosen.type}."
    shown.print(summary, highlight=False, soft_wrap=True)
    sys.exit(OK if outcome.violations.empty else VIOLATED)


def _print_catalog() -> None:
    from rich.table import Table

    from empirical.experiments import catalog, read_experiment

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("experiment", "data", "what it shows"):
        shown.add_column(heading, overflow="fold")
    for name in catalog():
        experiment: Experiment = read_experiment(name)
        shown.add_row(name, experiment.data, experiment.title)
    console().print(shown)


def _print_violations(failed: pd.DataFrame) -> None:
    shown = console()
    if failed.empty:
        shown.print("No theorem is violated.", highlight=False)
        return
    theorems = ", ".join(sorted(failed["theorem"].unique()))
    shown.print(
        f"{len(failed):,} cases violate a theorem ({theorems}); the largest excesses:", highlight=False
    )
    shown.print(failed.head(_NAMED).to_string(index=False), highlight=False, soft_wrap=True)
