"""Draw every figure from a results table: ``python -m paper_figures TABLE.parquet --out DIR``."""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paper_figures.gallery import ENTRIES, FORMATS, render

_COLUMNS = ["family", "pruning", "sparsity", "seed", "norm", "quantity", "method", "kind", "value"]


class BadInput(click.ClickException):
    """One line on standard error and exit status 2."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="Folder for the files.",
)
def main(table: Path, out: Path) -> None:
    """Draw every figure of a results TABLE as SVG and PNG."""
    rows = read_network_rows(table)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry in ENTRIES:
            figure = entry.draw(rows)
            for format in FORMATS:
                path = out / f"{entry.name}.{format}"
                path.write_bytes(render(figure, format))
                click.echo(path)
    except OSError as error:
        raise BadInput(f"out is {out}, which cannot be written ({error.strerror})") from error


def read_network_rows(path: Path) -> pd.DataFrame:
    """The rows about whole networks. Raises: BadInput if the file is missing, damaged or another table."""
    try:
        content = pq.read_table(path, columns=[*_COLUMNS, "example"], filters=pc.field("example").is_null())
    except FileNotFoundError as error:
        raise BadInput(f"no results table at {path}") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n", 1)[0]
        raise BadInput(f"{path} is no readable results table ({reason})") from error
    return content.select(_COLUMNS).to_pandas()


if __name__ == "__main__":
    main(prog_name="python -m paper_figures")
