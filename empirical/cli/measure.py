"""The command ``measure``: attack a network of the user's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from empirical.cli.network import attacks_option, network_options, opened, print_tables, say_end
from empirical.cli.terminal import OK, listed, numbers, one_line_errors, progress, unless_read_only
from empirical.runs.interrupts import uninterrupted


@click.command()
@network_options(examples=1000, folder="measure")
@attacks_option("fgs,deepfool,ddn,fmn,fmn-init")
@click.option("--eps", default=0.1, show_default=True, help="Size at which robust accuracy is counted.")
@click.option("--box", nargs=2, type=float, metavar="LO HI", help="Keep attacks in this box.")
def measure(
    model: Path,
    data: str,
    arch: str | None,
    arch_args: str,
    shape: str | None,
    examples: int,
    attacks: str,
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
        with uninterrupted():
            from empirical.own_network.measuring import Request, default_folder, measure_network
            from empirical.own_network.tables import attack_tables
            from empirical.runs.provenance import log_command

        request = Request(
            examples=examples,
            attacks=tuple(attacks.split(",")),
            eps=eps,
            box=box or None,
            shape=numbers("shape", shape, int) or None,
        )
        network, given, chosen = opened(model, arch, arch_args, data, request.shape, device)
        folder = out or default_folder(network)
        with progress(len(request.attacks)) as advance:
            outcome = measure_network(network, given, request, folder, device=chosen, advance=advance)
        with unless_read_only():
            log_command(folder, seconds=time.perf_counter() - started, workers=1, device=chosen)
    print_tables(attack_tables(outcome.rows), markdown=markdown)
    files = listed(("Table", outcome.path))
    say_end(files, started, min(examples, len(given.y)), chosen, markdown=markdown)
    sys.exit(OK)
