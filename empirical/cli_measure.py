"""The command ``measure``: attack a network of the user's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli_bounds import json_arguments, numbers, print_tables
from empirical.completion import complete_attacks, complete_data
from empirical.terminal import OK, one_line_errors, progress

if TYPE_CHECKING:
    import pandas as pd

_NORMS = {"linf": "l_inf", "l2": "l_2"}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="NAME|FILE|FOLDER",
    shell_complete=complete_data,
    help="digits, mnist, fashion-mnist, cifar10, a file with x_test and y_test, or shards.",
)
@click.option("--arch", metavar="MODULE:NAME", help="Class or function that makes the checkpoint's module.")
@click.option("--arch-args", default="{}", metavar="JSON", help="Its keyword arguments.  [default: none]")
@click.option(
    "--shape", metavar="C,H,W", help="Shape of one example.  [default: as the file or the data says]"
)
@click.option("--examples", default=1000, show_default=True, help="Test examples to use, from the first on.")
@click.option(
    "--attacks",
    metavar="A,B,...",
    shell_complete=complete_attacks,
    help="Any of fgs, rfgs, deepfool, pgd, ddn, fmn, cw.  [default: fgs,deepfool,ddn,fmn]",
)
@click.option("--eps", default=0.1, show_default=True, help="Size at which robust accuracy is counted.")
@click.option("--box", nargs=2, type=float, metavar="LO HI", help="Keep attacks in this box.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run; another run's is never overwritten.  [default: results/measure-MODEL]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
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
        from empirical.networks import load_network
        from empirical.own_network import Request, default_folder, measure_network
        from empirical.provenance import choose_device, log_command

        request = Request(
            examples=examples,
            attacks=tuple(attacks.split(",")) if attacks else Request.attacks,
            eps=eps,
            box=box or None,
            shape=numbers("shape", shape, int) or None,
        )
        network = load_network(model, arch=arch, arch_args=json_arguments(arch_args))
        click.echo(f"{network.name}: {network.recognised}", err=True)
        chosen = choose_device(device)
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


def tabulate(rows: pd.DataFrame) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
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
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [(("network", ""), lines)]
    for norm, title in _NORMS.items():
        of_norm = rows[(rows["norm"] == norm) & (rows["quantity"] == "mean_radius")]
        methods = list(of_norm["method"].unique())
        if methods:
            header = (f"{title}, smallest found", "mean", "mean square", "not found", "robust at eps")
            tables.append((header, [_line(rows, norm, method) for method in methods]))
    return tables


def _line(rows: pd.DataFrame, norm: str, method: str) -> tuple[str, ...]:
    own = rows[(rows["norm"] == norm) & (rows["method"] == method)].set_index("quantity")["value"]
    return (
        method,
        f"{own['mean_radius']:.4g}",
        f"{own['mean_squared_distance']:.4g}",
        f"{own['capped']:.0f}",
        f"{own['robust_accuracy']:.4g}",
    )
