"""What the commands about a network of the user's own share: their options, their reading, their tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.completion import ATTACKS, complete_attacks, complete_data
from empirical.cli.terminal import console

if TYPE_CHECKING:
    import torch

    from empirical.datasets import Examples
    from empirical.own_network.loading import Network
    from empirical.own_network.tables import Cells, Table

_WIDEST = 10_000  # columns that no table has


def network_options(*, examples: int, folder: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The model, its data, and where results go; ``examples`` and ``folder`` are the command's defaults."""
    options = (
        click.argument("model", type=click.Path(path_type=Path)),
        click.option(
            "--data",
            required=True,
            metavar="NAME|FILE|FOLDER",
            shell_complete=complete_data,
            help="digits, mnist, fashion-mnist, cifar10, a file with x_test and y_test, or shards.",
        ),
        click.option(
            "--arch",
            metavar="MODULE:NAME",
            help="Class or function that makes the checkpoint's module; FILE.py:NAME for one in a file.",
        ),
        click.option(
            "--arch-args", default="{}", metavar="JSON", help="Its keyword arguments.  [default: none]"
        ),
        click.option(
            "--shape", metavar="C,H,W", help="Shape of one example.  [default: as the file or the data says]"
        ),
        click.option(
            "--examples",
            default=examples,
            show_default=True,
            help="Test examples to use, from the first on.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help=f"Folder of the run; another run's is never overwritten.  [default: results/{folder}-MODEL]",
        ),
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
        ),
        click.option("--markdown", is_flag=True, help="Print Markdown tables."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def attacks_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Attacks joined by commas; ``default`` is the command's."""
    return click.option(
        "--attacks",
        default=default,
        show_default=True,
        metavar="A,B,...",
        shell_complete=complete_attacks,
        help=f"Any of {', '.join(ATTACKS)}.",
    )


def opened(
    model: Path,
    arch: str | None,
    arch_args: str,
    data: str | Examples,
    shape: tuple[int, ...] | None,
    device: str,
) -> tuple[Network, Examples, torch.device]:
    """The network, said aloud what it is and what is odd, the data, and the device. Raises: InvalidInput."""
    from empirical.datasets import load_test
    from empirical.own_network.loading import load_network
    from empirical.own_network.preparation import prepare
    from empirical.own_network.trial import guesses
    from empirical.runs.provenance import choose_device

    chosen = choose_device(device)
    network = load_network(model, arch=arch, arch_args=_json_arguments(arch_args))
    examples = load_test(data) if isinstance(data, str) else data
    network = prepare(network, examples, shape)
    click.echo(f"{network.name}: {network.recognised}", err=True)
    read = examples.doubt if isinstance(data, str) else None  # else it was said when they were read
    for doubt in filter(None, (read, guesses(network, examples))):
        click.echo(f"Note: {doubt}", err=True)
    return network, examples, chosen


def say_end(files: str, started: float, count: int, device: torch.device, *, markdown: bool) -> None:
    """Where the files are, of how many examples all is, and how long it took; aside beside Markdown."""
    seconds = time.perf_counter() - started
    click.echo(f"{files}n = {count:,} test examples. Took {seconds:.0f} s on {device.type}.", err=markdown)


def _json_arguments(text: str) -> dict[str, object]:
    """A JSON object. Raises: InvalidInput for anything else."""
    from theory.types import InvalidInput

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"arch-args is {text!r}; give a JSON object such as '{{\"width\": 300}}'")
    return found


def print_tables(tables: list[Table], *, markdown: bool) -> None:
    """Header and lines of each table, for a terminal or as Markdown."""
    if markdown:
        click.echo("\n".join(_markdown(*table) for table in tables))
        return
    from rich.measure import Measurement

    for table in tables:
        lines, shown = _rich(*table), console()
        widest = Measurement.get(shown, shown.options.update(max_width=_WIDEST), lines).maximum
        shown.width = max(shown.width, widest)  # a narrow terminal breaks lines, but no number is cut
        shown.print(lines, "")


def _markdown(header: Cells, lines: list[Cells]) -> str:
    rule = "|".join("---" for _ in header)
    rows = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
    return f"| {' | '.join(header)} |\n|{rule}|\n{rows}"


def _rich(header: Cells, lines: list[Cells]):  # noqa: ANN202 - rich is imported late
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(header):
        shown.add_column(name, no_wrap=True, justify="left" if place == 0 or name == "bound" else "right")
    for line in lines:
        shown.add_row(*line)
    return shown
