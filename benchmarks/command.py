"""The command line of a benchmark on MNIST: one thread, a table printed and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
from threadpoolctl import threadpool_limits

from benchmarks.tables import Row, report
from empirical.datasets import Dataset, load


def on_mnist(
    tabulate: Callable[[Dataset, bool], Sequence[Row]], fields: Sequence[str], purpose: str
) -> click.Command:
    """A command that times on MNIST or, quickly, on the digits; ``tabulate`` is told which of the two."""

    @click.command(help=f"{purpose}, on one thread.")
    @click.option("--mnist", help="MNIST: an .npz file with x_train, y_train, x_test and y_test.")
    @click.option("--quick", is_flag=True, help="A smoke test on scikit-learn's digits instead.")
    @click.option("--out", type=click.Path(path_type=Path), help="Also write the table as CSV.")
    def main(*, mnist: str | None, quick: bool, out: Path | None) -> None:
        if (mnist is None) != quick:
            raise click.UsageError("give either --mnist FILE.npz or --quick")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(limits=1):
                table = tabulate(load(mnist or "digits"), quick)
        finally:
            torch.set_num_threads(threads)
        report(table, fields, out)

    return main
