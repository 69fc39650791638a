"""The command ``bounds``: the whole ladder of the theory for a network of the user's own."""

from __future__ import annotations

import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from empirical.terminal import OK, console, one_line_errors, progress

if TYPE_CHECKING:
    import pandas as pd

    from empirical.bounds import Outcome

_LEGEND = (
    "At r: the share of the examples certified at that radius; for Lipschitz constants,\n"
    "the mean on balls of that radius. Means of constants are over the other classes too."
)
# Sparsities of the masks that the terminal shows; the table has all.
_SHOWN = (0.0, 0.5, 0.9, 0.99)
_NORMS = {"linf": "l_inf", "l2": "l_2"}
_T = TypeVar("_T", int, float)
Cells = tuple[str, ...]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="NAME|FILE|FOLDER",
    help="digits, mnist, fashion-mnist, cifar10, a file with x_test and y_test, or shards.",
)
@click.option("--arch", metavar="MODULE:NAME", help="Class or function that makes the checkpoint's module.")
@click.option("--arch-args", default="{}", metavar="JSON", help="Its keyword arguments.  [default: none]")
@click.option(
    "--shape", metavar="C,H,W", help="Shape of one example.  [default: as the file or the data says]"
)
@click.option("--examples", default=100, show_default=True, help="Test examples to use, from the first on.")
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
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run; another run's is never overwritten.  [default: results/bounds-MODEL]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True)
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
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
        from empirical.networks import load_network
        from empirical.provenance import choose_device

        request = Request(
            examples=examples,
            norms=numbers("p", ",".join(norms), float) or Request.norms,
            radii=radii or None,
            alphas=numbers("alphas", alphas, float) or ALPHAS,
            pair=pair or None,
            steps=steps,
            shape=numbers("shape", shape, int) or None,
            dtype=dtype,
        )
        chosen = choose_device(device)
        network = load_network(model, arch=arch, arch_args=json_arguments(arch_args))
        click.echo(f"{network.name}: {network.recognised}", err=True)
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


def numbers(name: str, text: str | None, kind: type[_T]) -> tuple[_T, ...]:
    """Numbers joined by commas; none for no text. Raises: InvalidInput for anything else."""
    from theory.types import InvalidInput

    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidInput(f"{name} is {text!r}; give numbers joined by commas") from error


def json_arguments(text: str) -> dict[str, object]:
    """A JSON object. Raises: InvalidInput for anything else."""
    from theory.types import InvalidInput

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"arch-args is {text!r}; give a JSON object such as '{{\"width\": 300}}'")
    return found


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
    present = [norm for norm in _NORMS if (whole["norm"] == norm).any()]
    tables += [_norm_table(whole[whole["norm"] == norm], norm) for norm in present]
    active = whole.loc[whole["quantity"] == "active_units", "value"].astype(int)
    masks = {
        "expected_lipschitz": "random masks",
        "expected_lipschitz_active": f"at most {', '.join(map(str, active))} active",
    }
    for norm, (quantity, told) in product(present, masks.items()):
        some = whole[(whole["quantity"] == quantity) & (whole["norm"] == norm)]
        if not some.empty:
            tables.append(_mask_table(some, f"{_NORMS[norm]}, {told}"))
    return tables


def _mask_table(rows: pd.DataFrame, title: str) -> tuple[Cells, list[Cells]]:
    """The rungs at the sparsities shown, or at all where none of these was asked for."""
    if rows["sparsity"].isin(_SHOWN).any():
        rows = rows[rows["sparsity"].isin(_SHOWN)]
    rungs = list(rows["method"].unique())
    lines = [
        (f"alpha = {alpha:g}", *(_value(rows, method=rung, sparsity=alpha) for rung in rungs))
        for alpha in sorted(rows["sparsity"].unique())
    ]
    return (f"{title}, classes {rows['pair'].iloc[0]}", *rungs), lines


def _norm_table(rows: pd.DataFrame, norm: str) -> tuple[Cells, list[Cells]]:
    """What is certified in one norm: radii, the share of examples certified at r, constants on balls."""
    radii = sorted(rows["radius"].dropna().unique())
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
    return (_NORMS[norm], "bound", "mean", "median", *(f"r={radius:g}" for radius in radii)), lines


def _value(rows: pd.DataFrame, **wanted: str | float) -> str:
    """The value of the one row with these entries; empty if there is none."""
    for column, entry in wanted.items():
        rows = rows[rows[column] == entry]
    if not len(rows):
        return ""
    value = float(rows["value"].iloc[0])
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"


def print_tables(tables: list[tuple[Cells, list[Cells]]], *, markdown: bool) -> None:
    """Header and lines of each table, for a terminal or as Markdown."""
    if markdown:
        click.echo("\n".join(_markdown(*table) for table in tables))
        return
    for table in tables:
        console().print(_rich(*table), "")


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
