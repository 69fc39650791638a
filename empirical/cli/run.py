"""The commands that train: ``verify``, the main job, and ``run``, any experiment file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.completion import complete_data, complete_experiment
from empirical.cli.terminal import (
    OK,
    PAUSED,
    VIOLATED,
    LocationPath,
    console,
    listed,
    numbers,
    one_line_errors,
    progress,
    unless_read_only,
)
from empirical.runs.interrupts import Terminated, uninterrupted

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from empirical.experiments import Experiment
    from empirical.runs.locations import Location
    from empirical.runs.run import Part
    from empirical.runs.workers import Workers

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
            type=LocationPath(path_type=Path, file_okay=False),
            metavar="FOLDER|URL",
            help="Folder of the run, or a URL such as s3://bucket/name; another run's is never overwritten.  "
            "[default: results/NAME-SETTINGS]",
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
            help="Processes that share the work.  [default: one per core; 1 on a GPU]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_shared
def verify(
    data: str | None,
    out: Location | None,
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
        with uninterrupted():
            from empirical.experiments import read_experiment

        chosen = [_changed(read_experiment(name), changes) for name in MAIN_JOB]
    _execute(chosen, out, device=device, workers=workers)


@click.command()
@click.argument("experiments", nargs=-1, metavar="EXPERIMENT...", shell_complete=complete_experiment)
@click.option("--list", "listed", is_flag=True, help="List the shipped experiments and exit.")
@click.option("--quick", is_flag=True, help="The reduced size that the experiment's [quick] table gives.")
@click.option("--test-examples", type=int, help="Attack this many test examples.")
@click.option(
    "--networks",
    type=LocationPath(path_type=Path, file_okay=False),
    metavar="FOLDER|URL",
    help="An earlier run whose networks are taken over where they were trained alike: other attacks, "
    "examples, seeds or further sparsities train only what is new.",
)
@click.option(
    "--minutes",
    type=float,
    help="Stop after so many minutes, with exit status 3; the same command goes on from there.",
)
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask", "ray"]),
    default="loky",
    show_default=True,
    help="What starts the workers on this machine, or what cluster --address names.",
)
@click.option("--address", metavar="URL", help="A running Dask scheduler or Ray cluster that does the work.")
@click.option(
    "--gpus",
    type=float,
    metavar="SHARE",
    help="What each worker has of a GPU: 1, or 0.5 where two share one.  [default: with ray 1; else this "
    "machine's GPUs are shared evenly, and a Dask cluster's as it was started]",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Only every N-th seed, from the I-th (0 to N-1) on: N commands share a folder.",
)
@_shared
def run(
    experiments: tuple[str, ...],
    *,
    listed: bool,
    quick: bool,
    test_examples: int | None,
    networks: Location | None,
    backend: str,
    minutes: float | None,
    address: str | None,
    gpus: float | None,
    part: str | None,
    data: str | None,
    out: Location | None,
    seeds: int | None,
    sparsities: str | None,
    eps: float | None,
    pair: tuple[int, int] | None,
    device: str,
    workers: int | None,
) -> None:
    """Run EXPERIMENT, a shipped one by name or your own .toml file; several make one results table.

    Leaves results.parquet, figures and report.html. A run that was killed goes on where it stopped; one of
    which a training diverges does everything else, leaves incomplete.parquet and ends with exit status 2.
    Exit status 75: workers were killed; the same command goes on.
    """
    if listed:
        _print_catalog()
        return
    if not experiments:
        raise click.UsageError("name an experiment, or --list them")
    changes = {"data": data, "seeds": seeds, "sparsities": sparsities, "eps": eps, "pair": pair}
    changes["test_examples"] = test_examples
    with one_line_errors():
        with uninterrupted():
            from empirical.experiments import read_experiment

        for name in experiments:
            _check_there(name)
        chosen = [_changed(read_experiment(name, quick=quick), changes) for name in experiments]
    _execute(
        chosen,
        out,
        device=device,
        networks=networks,
        workers=workers,
        backend=backend,
        address=address,
        gpus=gpus,
        part=part,
        minutes=minutes,
    )


def _check_there(name: str) -> None:
    """Raise InvalidInput for a file of the user's own that is missing; other names are looked up."""
    from theory.types import InvalidInput

    if name.endswith(".toml") and not Path(name).is_file():
        raise InvalidInput(f"experiment is {name!r}; no such file")


def _changed(experiment: Experiment, changes: dict[str, object]) -> Experiment:
    """The experiment with the entries that the command line replaces."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "sparsities" in given:
        given["sparsities"] = numbers("sparsities", str(given["sparsities"]), float)
    return replace(experiment, **given)  # type: ignore[arg-type]


def _execute(
    experiments: list[Experiment],
    out: Location | None,
    *,
    device: str,
    workers: int | None,
    networks: Location | None = None,
    backend: str = "loky",
    address: str | None = None,
    gpus: float | None = None,
    part: str | None = None,
    minutes: float | None = None,
) -> None:
    """Run the experiments, or a part of them, report, and exit."""
    started = time.perf_counter()
    with one_line_errors():
        with uninterrupted():
            from empirical.experiments.chains import NetworksLost
            from empirical.report import claims_table, write_report
            from empirical.runs.deadline import OutOfTime, deadline_in
            from empirical.runs.locations import Unreachable
            from empirical.runs.provenance import log_command
            from empirical.runs.run import Part, default_folder, run_experiments, run_part, total_steps
            from empirical.runs.workers import WorkersLost

        chosen = _device(device, address)
        crew = _crew(chosen, workers, backend, address, gpus)
        deadline = deadline_in(minutes, address=address)
        share = Part() if part is None else _part(part)
        folder = out or default_folder(experiments, chosen, networks=networks)

        def log(ended: str = "done") -> None:
            seconds = time.perf_counter() - started
            log_command(folder, seconds=seconds, workers=crew.count, device=chosen, ended=ended)

        try:
            with progress(total_steps(experiments, chosen, share)) as advance:
                work = {"device": chosen, "networks": networks, "workers": crew, "deadline": deadline}
                work |= {"advance": advance, "tell": partial(advance, steps=0)}
                work["note"] = partial(click.echo, err=True)
                if part is not None:
                    missing = run_part(experiments, folder, part=share, **work)
                    log()
                    click.echo(f"Part {part} is done; {_missing(missing)}.")
                    return
                outcome = run_experiments(experiments, folder, **work)
        except NetworksLost:
            log("networks diverged")
            raise
        except (WorkersLost, KeyboardInterrupt) as error:
            with suppress(OSError, Unreachable):  # what ended it is what is told
                if (folder / "settings.json").is_file():  # else nothing was begun
                    ended = {WorkersLost: "workers were killed", Terminated: "terminated"}
                    log(ended.get(type(error), "interrupted"))
            raise
        except OutOfTime:
            log("out of time")
            click.echo(f"Stopped after {minutes:g} minutes; the same command goes on from here.", err=True)
            sys.exit(PAUSED)
        with unless_read_only():
            log()
            write_report(folder, outcome.networks, outcome.claims, outcome.violations, outcome.settings)
    shown = console()
    if outcome.claims.empty:
        shown.print("No claim is judged: they compare pruned networks with dense ones.", highlight=False)
    else:
        shown.print(claims_table(outcome.claims))
    _print_violations(outcome.violations)
    seconds = time.perf_counter() - started
    files = listed(("Report", folder / "report.html"), ("Table", outcome.path))
    shown.print(f"{files}Took {seconds:.0f} s on {chosen.type}.", highlight=False, soft_wrap=True)
    sys.exit(OK if outcome.violations.empty else VIOLATED)


def _device(name: str, address: str | None) -> torch.device:
    """Where networks are trained; the workers of a cluster check for themselves that they have it."""
    import torch

    from empirical.runs.provenance import choose_device
    from theory.types import InvalidInput

    if address is None:
        return choose_device(name)
    if name == "auto":
        raise InvalidInput("device is 'auto', but the work is done elsewhere; give --device cpu or cuda")
    return torch.device(name)


def _crew(
    device: torch.device, count: int | None, backend: str, address: str | None, gpus: float | None
) -> Workers:
    """The workers that the options describe."""
    from empirical.runs.provenance import cores
    from empirical.runs.workers import Workers
    from theory.types import InvalidInput

    if count is not None and address is not None:
        raise InvalidInput(
            f"workers is {count}, but the cluster at {address} has its own; leave --workers out"
        )
    if gpus is not None and device.type == "cpu":
        raise InvalidInput(f"gpus is {gpus:g}, but device is cpu; leave --gpus out, or use --device cuda")
    here = 1 if device.type != "cpu" or address is not None else cores()
    return Workers(here if count is None else count, backend, address, gpus)


def _part(text: str) -> Part:
    from empirical.runs.run import Part
    from theory.types import InvalidInput

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise InvalidInput(f"part is {text!r}; give I/N, two whole numbers, such as 0/8")
    return Part(int(index), int(count))


def _missing(units: int) -> str:
    """What is to be done after a part."""
    if units:
        return f"the whole run lacks {units:,} units, which the other parts make"
    return "the same command without --part makes the table"


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
