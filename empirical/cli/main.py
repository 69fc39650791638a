"""The command line. Heavy imports wait until a command runs, so that help is immediate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.bounds import bounds
from empirical.cli.check import check
from empirical.cli.completion import completion
from empirical.cli.doctor import doctor
from empirical.cli.falsify import falsify
from empirical.cli.measure import measure
from empirical.cli.run import run, verify
from empirical.cli.terminal import OK, VIOLATED, LocationPath, Program, console, numbers, one_line_errors
from empirical.runs.interrupts import uninterrupted
from paper_figures.command import figures

if TYPE_CHECKING:
    from empirical.runs.locations import Location


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001
    if asked:
        from empirical.runs.provenance import commit, package_version

        click.echo(f"sparse-robustness {package_version()} (commit {commit()})")
        context.exit()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and the commit and exit.",
)
def main() -> None:
    """What weight sparsity does to adversarial robustness: theorems, measurements, and their agreement.

    Exit status: 0 no theorem is violated, 1 one is, 2 bad usage or input or a training that diverged, 3 the
    time given is over, 70 an error of this program, 75 workers were killed and the same command goes on,
    130 Ctrl-C, 143 SIGTERM: likewise.
    """


main.add_command(verify)
main.add_command(run)
main.add_command(falsify)
main.add_command(check)
main.add_command(bounds)
main.add_command(measure)
main.add_command(figures)
main.add_command(doctor)
main.add_command(completion)


@main.command()
@click.argument("table", type=LocationPath(path_type=Path, exists=True))
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def claims(table: Location, *, markdown: bool) -> None:
    """Judge the claims from the results TABLE of an earlier run, or from the folder of one."""
    with one_line_errors():
        with uninterrupted():
            import pyarrow.compute as pc

            from empirical.claims import judge, violations
            from empirical.report import claims_markdown, claims_table
            from empirical.results import read_table
            from theory.types import InvalidInput

        remedy = "give the results.parquet of a run"
        if isinstance(table, Path) and table.is_dir():
            folder, table = table, table / "results.parquet"
            if not table.is_file():
                raise InvalidInput(
                    f"table is {folder}, which is no folder of a finished run: it has no {table}, and a "
                    f"check or measure of one network makes no claims; {remedy}"
                )
        if not table.is_file():
            raise InvalidInput(f"table is {table}, which does not exist; {remedy}")
        content = read_table(table, remedy=remedy)
        networks = content.filter(pc.field("example").is_null())
        if not networks.num_rows:
            raise InvalidInput(f"table is {table}, which has no rows about whole networks; {remedy}")
        judged, failed = judge(networks.to_pandas()), violations(content)
        if judged.empty and failed.empty:
            raise InvalidInput(
                f"table is {table}, which no claim speaks of: they compare pruned networks with dense ones, "
                f"seed by seed; {remedy}"
            )
    if markdown:
        click.echo(claims_markdown(judged))
    else:
        console().print(claims_table(judged))
    violated = judged["violations"].gt(0).any() or not failed.empty
    sys.exit(VIOLATED if violated else OK)


@main.command()
@click.argument("folder", type=LocationPath(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--partial", is_flag=True, help="Also of a run that is not finished: the rows that there are.")
@click.option(
    "--examples-of",
    type=int,
    metavar="SEED",
    help="Instead, the rows about single examples of this seed's networks.",
)
@click.option("--sparsities", metavar="A,B,...", help="With --examples-of, those at these sparsities only.")
def condense(
    folder: Location, out: Path, *, partial: bool, examples_of: int | None, sparsities: str | None
) -> None:
    """Write the rows about whole networks of the run in FOLDER to OUT, small enough to be committed.

    Settings, commands, seconds and versions become metadata of the file; examples' rows are left out, but
    for those of a table of bounds.
    """
    with one_line_errors():
        with uninterrupted():
            from empirical.runs.condense import condense as write

        rows = write(
            folder,
            out,
            partial=partial,
            examples_of=examples_of,
            sparsities=None if sparsities is None else numbers("sparsities", sparsities, float),
            tell=lambda line: click.echo(line, err=True),
        )
    click.echo(f"{rows:,} rows in {out}")
