"""Rows of a benchmark: printed in columns, stored as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import click

Row = dict[str, object]


def report(table: Sequence[Row], fields: Sequence[str], path: Path | None) -> None:
    """Print the rows and, if there is a path, store them there."""
    show(table, fields)
    if path:
        save(table, fields, path)


def show(table: Sequence[Row], fields: Sequence[str]) -> None:
    """Print the rows under a line of headings, every column as wide as its widest entry."""
    widths = {field: max(len(field), *(len(str(line[field])) for line in table)) for field in fields}
    for line in ({field: field for field in fields}, *table):
        click.echo("  ".join(str(line[field]).ljust(widths[field]) for field in fields).rstrip())


def save(table: Sequence[Row], fields: Sequence[str], path: Path) -> None:
    """Write the rows as CSV, under a temporary name that is moved into place; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(table)
    os.replace(unfinished, path)
