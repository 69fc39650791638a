"""The command ``measure``: attack a network of the user's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli_network import NORMS, Cells, network_options, numbers, opened, print_tables
from empirical.terminal import OK, one_line_errors, progress

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@network_options(examples=1000, folder="measure")
@click.option(
    "--attacks",
    metavar="A,B,...",
    help="Any of fgs, rfgs, deepfool, pgd, ddn, fmn, cw.  [default: fgs,deepfool,ddn,fmn]",
)
@click.option("--eps", default=0.1, show_default=True, help="Size at which robust accuracy is counted.")
@click.option("--box", nargs=2, type=float, metavar="LO HI", help="Keep attacks in this box.")
def measure(
    model: Path,
    data: str,
    arch: str | None,
    arch_args: str,
    shape: str | None,
    examples: int,
    attacks: str | None,
    eps: float,
    box: tuple[float, float] | None,
    out: Path | None,
    device: str,
    *,
    markdown: bool,
) -> None:
    """Attack your own network MODEL: accuracy, smallest perturbations found, robust accuracy.

    MODEL is a torch.export program (.pt2), or a checkpoint (.safetensors, or a state dict in .pt or .pth)
    with --arch, or one of plain linear layers, between which ReLUs are assumed. Every hit is checked in
    float64. The run leaves measure.parquet; one that was killed goes on at the next attack.
    """
    started = time.perf_counter()
    with one_line_errors():
        from empirical.datasets import load_test
        from empirical.own_network import Request, default_folder, measure_network
        from empirical.provenance import log_command

        request = Request(
            examples=examples,
            attacks=tuple(attacks.split(",")) if attacks else Request.attacks,
            eps=eps,
            box=box or None,
            shape=numbers("shape", shape, int) or None,
        )
        network, chosen = opened(model, arch, arch_args, device)
        folder = out or default_folder(network)
        with progress(len(request.attacks)) as advance:
            outcome = measure_network(
                network, load_test(data), request, folder, device=chosen, advance=advance
            )
        log_command(folder, seconds=time.perf_counter() - started, workers=1, device=chosen)
    print_tables(tabulate(outcome.rows), markdown=markdown)
    seconds = time.perf_counter() - started
    click.echo(f"Table   {outcome.path}\nTook {seconds:.0f} s on {chosen.type}.", err=markdown)
    sys.exit(OK)


def tabulate(rows: pd.DataFrame) -> list[tuple[Cells, list[Cells]]]:
    """Header and lines of the tables: the network, then each norm's attacks."""
    clean = rows[(rows["quantity"] == "accuracy") & (rows["method"] == "clean")]["value"].iloc[0]
    lines = [
        ("sparsity", f"{rows['achieved_sparsity'].iloc[0]:.4g}"),
        ("accuracy, clean", f"{clean:.4g}"),
    ]
    fgs = rows[rows["quantity"] == "fgs_accuracy"].drop_duplicates("method")
    lines += [
        (f"accuracy, {method}, eps = {eps:g}", f"{value:.4g}")
        for method, eps, value in fgs[["method", "eps", "value"]].itertuples(index=False)
    ]
    tables: list[tuple[Cells, list[Cells]]] = [(("network", ""), lines)]
    for norm, title in NORMS.items():
        of_norm = rows[(rows["norm"] == norm) & (rows["quantity"] == "mean_radius")]
        methods = list(of_norm["method"].unique())
        if methods:
            header = (f"{title}, smallest found", "mean", "mean square", "not found", "robust at eps")
            tables.append((header, [_line(rows, norm, method) for method in methods]))
    return tables


def _line(rows: pd.DataFrame, norm: str, method: str) -> Cells:
    own = rows[(rows["norm"] == norm) & (rows["method"] == method)].set_index("quantity")["value"]
    return (
        method,
        f"{own['mean_radius']:.4g}",
        f"{own['mean_squared_distance']:.4g}",
        f"{own['capped']:.0f}",
        f"{own['robust_accuracy']:.4g}",
    )
