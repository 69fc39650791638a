"""The command ``bounds``: the whole ladder of the theory for a network of the user's own."""

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

    from empirical.bounds import Outcome

_LEGEND = (
    "At r: the share of the examples certified at that radius; for Lipschitz constants,\n"
    "the mean on balls of that radius. Means of constants are over the other classes too."
)
# Sparsities of the masks that the terminal shows; the table has all.
_SHOWN = (0.0, 0.5, 0.9, 0.99)


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
    convolution, pooling and batch-norm layers, ReLUs, sums and reshapes. The run leaves bounds.parquet and a
    figure (SVG, PNG); a finished one is only reported again.
    """
    started = time.perf_counter()
    with one_line_errors():
        from empirical.bounds import ALPHAS, Request, default_folder, total_steps
        from empirical.bounds import bounds as run
        from empirical.datasets import load_test

        request = Request(
            examples=examples,
            norms=numbers("p", ",".join(norms), float) or Request.norms,
            radii=radii or None,
            alphas=numbers("alphas", alphas, float) or ALPHAS,
            pair=pair or None,
            steps=steps,
            crown=crown,
            shape=numbers("shape", shape, int) or None,
            dtype=dtype,
        )
        network, chosen = opened(model, arch, arch_args, device)
        folder = out or default_folder(network)
        with progress(total_steps(request)) as advance:
            outcome = run(network, load_test(data), request, folder, device=chosen, advance=advance)
        drawn = _draw(outcome)
    tables = tabulate(outcome.rows)
    print_tables(tables, markdown=markdown)
    seconds = time.perf_counter() - started
    note = f"{_LEGEND}\n\nFigure  {drawn}\nTable   {outcome.path}\nTook {seconds:.0f} s on {chosen.type}."
    click.echo(note, err=markdown)
    sys.exit(OK)


def _draw(outcome: Outcome) -> Path:
    """The figure as SVG and PNG beside the table; the path of the PNG."""
    from empirical.results import write_atomically
    from paper_figures.bounds import figure
    from paper_figures.gallery import FORMATS, render

    drawn = figure(outcome.rows)
    paths = [outcome.path.parent / "figures" / f"bounds.{format}" for format in FORMATS]
    for path in paths:
        content = render(drawn, path.suffix[1:])
        write_atomically(path, lambda temporary, content=content: temporary.write_bytes(content))
    return next(path for path in paths if path.suffix == ".png")


def tabulate(rows: pd.DataFrame) -> list[tuple[Cells, list[Cells]]]:
    """Header and lines of the tables: the network, each norm, and random masks where there are any."""
    whole = rows[rows["example"].isna()]
    facts = whole[whole["quantity"].isin(["accuracy", "sparsity"])]
    lines = [
        (f"{quantity}, {method}", f"{value:.4g}")
        for quantity, method, value in facts[["quantity", "method", "value"]].itertuples(index=False)
    ]
    tables: list[tuple[Cells, list[Cells]]] = [(("network", ""), lines)]
    present = [norm for norm in NORMS if (whole["norm"] == norm).any()]
    tables += [_norm_table(whole[whole["norm"] == norm], norm) for norm in present]
    masks = whole[whole["quantity"] == "expected_lipschitz"]
    if masks["sparsity"].isin(_SHOWN).any():
        masks = masks[masks["sparsity"].isin(_SHOWN)]
    for norm in present:
        some = masks[masks["norm"] == norm]
        if some.empty:
            continue
        rungs = list(some["method"].unique())
        lines = [
            (f"alpha = {alpha:g}", *(_value(some, method=rung, sparsity=alpha) for rung in rungs))
            for alpha in sorted(some["sparsity"].unique())
        ]
        tables.append(((f"{NORMS[norm]}, random masks, classes {some['pair'].iloc[0]}", *rungs), lines))
    return tables


def _norm_table(rows: pd.DataFrame, norm: str) -> tuple[Cells, list[Cells]]:
    """What is certified in one norm: radii, the share of examples certified at r, constants on balls."""
    radii = sorted(rows.loc[rows["method"] != "universal ceiling", "radius"].dropna().unique())
    lines = []
    for quantity, title, extra in (
        ("mean_radius", "radius", "robust_accuracy"),
        ("lipschitz", "Lipschitz", "lipschitz"),
    ):
        some = rows[rows["quantity"] == quantity]
        for method, nature in some[["method", "nature"]].drop_duplicates().itertuples(index=False):
            own = rows[rows["method"] == method]
            at = [_value(own, quantity=extra, radius=radius) for radius in radii]
            mean = _value(own[own["radius"].isna()], quantity=quantity)
            median = _value(own, quantity="median_radius") if quantity == "mean_radius" else ""
            lines.append((f"{title}, {method}", nature.removesuffix(" bound"), mean, median, *at))
    return (NORMS[norm], "bound", "mean", "median", *(f"r={radius:g}" for radius in radii)), lines


def _value(rows: pd.DataFrame, **wanted: str | float) -> str:
    """The value of the one row with these entries; empty if there is none."""
    for column, entry in wanted.items():
        rows = rows[rows[column] == entry]
    if not len(rows):
        return ""
    value = float(rows["value"].iloc[0])
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"
