"""The command that draws figures. Heavy imports wait until it runs, so that help is immediate."""

from __future__ import annotations

from pathlib import Path

import click

DATA = Path(__file__).with_name("data")


class BadInput(click.ClickException):
    """One line on standard error and exit status 2."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tables", metavar="[TABLE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the files.  [default: figures/TABLE]",
)
@click.option(
    "--width",
    type=click.Choice(["one-column", "two-column"]),
    default="two-column",
    show_default=True,
    help="3.4 or 7 inches.",
)
def figures(tables: tuple[Path, ...], *, out: Path | None, width: str) -> None:
    """Draw every figure of results TABLEs, or of the folders of runs, as SVG and PNG.

    One TABLE's figures lie in the folder that is given, those of several in one folder each there. Without a
    TABLE those of all committed results are drawn, which only a source tree holds.
    """
    given = tuple(table / "results.parquet" if table.is_dir() else table for table in tables)
    paths = given or tuple(sorted(DATA.glob("*.parquet")))
    if not paths:
        raise BadInput(
            f"no TABLE is given and none is in {DATA}; give the results.parquet of a run, or draw the "
            "committed results from a source tree"
        )
    from paper_figures.files import BadTable, table_names, write_all
    from paper_figures.layout import WIDTHS
    from paper_figures.parquet import printable

    try:
        folder = out or Path("figures")
        outs = [out] if out and len(tables) == 1 else [folder / name for name in table_names(paths)]
        for file in write_all(paths, outs, width=WIDTHS[width]):
            click.echo(file)
    except BadTable as error:
        raise BadInput(printable(str(error))) from error
