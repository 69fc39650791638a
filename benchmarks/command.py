"""The command line of a benchmark on MNIST: one thread, a table printed and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
import torch
from threadpoolctl import threadpool_limits

from benchmarks.tables import Row, report
from empirical.datasets import Dataset, load
from theory.types import InvalidInput, first_line

PIXELS = 28 * 28


def on_mnist(
    tabulate: Callable[[Dataset, bool], Iterable[Row]],
    fields: Sequence[str],
    purpose: str,
    finish: Callable[[list[Row]], list[Row]] = list,
) -> click.Command:
    """A command that times on MNIST or, quickly, on the digits; ``tabulate`` is told which of the two."""

    @click.command(help=f"{purpose}, on one thread.")
    @click.option("--mnist", help="MNIST: an .npz file with x_train, y_train, x_test and y_test.")
    @click.option("--quick", is_flag=True, help="A smoke test on scikit-learn's digits instead.")
    @click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
    def main(*, mnist: str | None, quick: bool, out: Path | None) -> None:
        if (mnist is None) != quick:
            raise click.UsageError("give either --mnist FILE.npz or --quick")
        try:
            data = load(mnist or "digits")
        except (InvalidInput, OSError) as error:
            raise click.ClickException(first_line(error)) from error
        if mnist and data.x_train.shape[1] != PIXELS:
            raise click.UsageError(f"{mnist} has {data.x_train.shape[1]} features, MNIST {PIXELS}")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(limits=1):
                report(tabulate(data, quick), fields, out, finish)
        finally:
            torch.set_num_threads(threads)

    return main
