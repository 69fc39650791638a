"""The command ``check``: everything about a network of the user's own on one page."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from empirical.cli.network import attacks_option, network_options, opened, print_tables, say_end
from empirical.cli.terminal import OK, listed, numbers, one_line_errors, progress, unless_read_only
from empirical.runs.interrupts import uninterrupted


@click.command()
@network_options(examples=100, folder="check")
@attacks_option("fgs,deepfool,fmn,fmn-init")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="DENSE",
    help="The dense network that MODEL was pruned from, to compare it with; --arch holds for both.",
)
@click.option("--eps", default=0.1, show_default=True, help="Step of the one-step attack.")
@click.option("--box", nargs=2, type=float, metavar="LO HI", help="Keep attacks in this box.")
@click.option(
    "--removed",
    metavar="A,B,...",
    help="Shares of the remaining weights to prune further.  [default: 5 values from 0.2 to 0.9]",
)
@click.option(
    "--crown",
    type=int,
    metavar="N",
    help="Examples to certify by linear relaxation.  [default: as many as about a minute allows]",
)
def check(
    model: Path,
    data: str,
    arch: str | None,
    arch_args: str,
    shape: str | None,
    examples: int,
    attacks: str,
    against: Path | None,
    eps: float,
    box: tuple[float, float] | None,
    removed: str | None,
    crown: int | None,
    out: Path | None,
    device: str,
    *,
    markdown: bool,
) -> None:
    """Everything about your own network MODEL on one page: sparsity, certificates, attacks, further pruning.

    MODEL is a torch.export program (.pt2), or a checkpoint (.safetensors, or a state dict in .pt or .pth)
    with --arch, or one of plain linear layers, between which ReLUs are assumed. With --against the page says
    what sparsity did to this network: both are attacked and certified at the same examples. The run leaves
    report.html, its tables and figures; one that was killed goes on, a finished one is only reported again.
    """
    started = time.perf_counter()
    with one_line_errors():
        with uninterrupted():
            from empirical.own_network.check import LEVELS, Request, default_folder, total_steps
            from empirical.own_network.check import check as run
            from empirical.own_network.check_report import summary_table, write_check
            from empirical.own_network.loading import is_program
            from empirical.runs.provenance import log_command

        request = Request(
            examples=examples,
            attacks=tuple(attacks.split(",")),
            removed=numbers("removed", removed, float) or LEVELS,
            crown=crown,
            eps=eps,
            box=box or None,
            shape=numbers("shape", shape, int) or None,
        )
        alone = against is None or is_program(against) or not is_program(model)  # --arch is about MODEL
        network, given, chosen = opened(
            model, arch if alone else None, arch_args, data, request.shape, device
        )
        dense = None
        if against is not None:
            made = None if is_program(against) else arch
            dense, _, _ = opened(against, made, arch_args, given, request.shape, device)
            if (dense.sha256, dense.computed) == (network.sha256, network.computed):
                click.echo(f"Note: against is {against}, which is MODEL itself", err=True)
        folder = out or default_folder(network)
        with progress(total_steps(request, dense=dense is not None)) as advance:
            findings = run(network, given, request, folder, device=chosen, dense=dense, advance=advance)
            advance("report")
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        parts = [folder, *(folder / name for name in ("bounds", "measure") if (folder / name).is_dir())]
        with unless_read_only():
            write_check(findings, folder, command=command)
            for part in parts:
                log_command(part, seconds=time.perf_counter() - started, workers=1, device=chosen)
    print_tables([summary_table(findings)], markdown=markdown)
    files = listed(("Report", folder / "report.html"))
    say_end(files, started, min(examples, len(given.y)), chosen, markdown=markdown)
    sys.exit(OK)
