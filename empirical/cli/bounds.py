"""The command ``bounds``: the whole ladder of the theory for a network of the user's own."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.network import network_options, opened, print_tables, say_end
from empirical.cli.terminal import OK, listed, numbers, one_line_errors, progress, unless_read_only
from empirical.runs.interrupts import uninterrupted

if TYPE_CHECKING:
    from empirical.own_network.bounds import Outcome

_LEGEND = (
    "At r: the share of the examples certified at that radius; for Lipschitz constants,\n"
    "the mean on balls of that radius. Means of constants are over the other classes too."
)
_LEGEND_OF_MASKS = (
    "Random masks remove each hidden weight with probability alpha: columns are upper bounds on the\n"
    "expected Lipschitz constant of the difference of two classes, by the rungs M, P1, F, P2, B and S of\n"
    "docs/theory.md; at most N active: where no more units of a hidden layer are active."
)


@click.command()
@network_options(examples=100, folder="bounds")
@click.option("--p", "norms", multiple=True, metavar="inf|2", help="Norm; may be repeated.  [default: inf 2]")
@click.option(
    "--radius",
    "radii",
    multiple=True,
    type=float,
    metavar="R",
    help="Radius of balls; may be repeated.  [default: 0 0.01 0.03 0.1 in l_inf, 0 0.1 0.3 1 in l_2]",
)
@click.option(
    "--alphas", metavar="A,B,...", help="Sparsities of random masks.  [default: 12 values from 0 to 0.99]"
)
@click.option(
    "--pair",
    nargs=2,
    type=int,
    metavar="I K",
    help="Classes of the random-mask bounds.  [default: the most common, its runner-up]",
)
@click.option("--steps", default=0, show_default=True, help="Optimise slopes by this many steps; 0: do not.")
@click.option(
    "--crown",
    type=int,
    metavar="N",
    help="Examples, the first ones, of the certificates by linear relaxation.  [default: all]",
)
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True)
def bounds(
    model: Path,
    data: str,
    arch: str | None,
    arch_args: str,
    shape: str | None,
    examples: int,
    norms: tuple[str, ...],
    radii: tuple[float, ...],
    alphas: str | None,
    pair: tuple[int, int] | None,
    steps: int,
    crown: int | None,
    out: Path | None,
    device: str,
    dtype: str,
    *,
    markdown: bool,
) -> None:
    """Certified radii, Lipschitz constants and random-mask bounds of your own network MODEL.

    MODEL is a torch.export program (.pt2), or a checkpoint (.safetensors, or a state dict in .pt or .pth)
    with --arch, or one of plain linear layers, between which ReLUs are assumed. The network may hold linear,
    convolution, pooling and batch-norm layers, ReLUs, sums and reshapes; any other that is differentiable
    check and measure take. The run leaves bounds.parquet and a
    figure (SVG, PNG); a finished one is only reported again.
    """
    started = time.perf_counter()
    with one_line_errors():
        with uninterrupted():
            from empirical.own_network.bounds import bounds as run
            from empirical.own_network.bounds import default_folder, total_steps
            from empirical.own_network.problem import ALPHAS, Request
            from empirical.own_network.tables import bound_tables
            from empirical.runs.provenance import log_command

        request = Request(
            examples=examples,
            norms=tuple(_norm(text) for several in norms for text in several.split(",")) or Request.norms,
            radii=radii or None,
            alphas=numbers("alphas", alphas, float) or ALPHAS,
            pair=pair or None,
            steps=steps,
            crown=crown,
            shape=numbers("shape", shape, int) or None,
            dtype=dtype,
        )
        network, given, chosen = opened(model, arch, arch_args, data, request.shape, device)
        folder = out or default_folder(network)
        with progress(total_steps(request)) as advance:
            outcome = run(
                network,
                given,
                request,
                folder,
                device=chosen,
                advance=advance,
                note=lambda line: click.echo(line, err=True),
            )
        with unless_read_only():
            log_command(folder, seconds=time.perf_counter() - started, workers=1, device=chosen)
            _draw(outcome)
    print_tables(bound_tables(outcome.rows), markdown=markdown)
    drawn = folder / "figures" / "bounds.png"
    files = listed(("Figure", drawn), ("Table", outcome.path))
    click.echo(f"{_LEGEND}\n", err=markdown)
    if (outcome.rows["quantity"] == "expected_lipschitz").any():
        click.echo(f"{_LEGEND_OF_MASKS}\n", err=markdown)
    say_end(files, started, min(examples, len(given.y)), chosen, markdown=markdown)
    sys.exit(OK)


def _norm(text: str) -> float:
    """inf or 2, also as the tables write them: l_inf, linf. Raises: InvalidInput for anything else."""
    from theory.types import InvalidInput

    with suppress(ValueError):
        p = float(text.strip().removeprefix("l").removeprefix("_"))
        if p in (2.0, math.inf):
            return p
    raise InvalidInput(f"p is {text!r}; choose inf or 2")


def _draw(outcome: Outcome) -> None:
    """The figure as SVG and PNG beside the table."""
    from empirical.pages import save_figure
    from paper_figures.bounds import figure

    save_figure(outcome.path.parent / "figures", "bounds", figure(outcome.rows))
