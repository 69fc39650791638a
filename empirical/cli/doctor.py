"""The command ``doctor``: what this installation can do, and whether it computes right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empirical.cli.terminal import OK, VIOLATED

if TYPE_CHECKING:
    from empirical.doctor import Finding

_MARKS = {"ok": " ", "note": "-", "warning": "!", "failed": "X"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list of objects.")
@click.option(
    "--workers", type=int, metavar="N", help="Processes of the run you plan.  [default: one per core]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder that it would write.",
)
def doctor(workers: int | None, out: Path, *, as_json: bool) -> None:
    """Say what this installation can do: versions, devices, threads, data sets, and a small self-check.

    The self-check attacks random linear classifiers, whose exact radii are known, and holds every identity
    and bound against them. Marks: '-' a note, '!' a warning, 'X' a failure.

    Exit status: 0 the package computes right, 1 it does not, 2 bad usage.
    """
    if workers is not None and workers < 1:
        raise click.BadParameter("give at least 1", param_hint="--workers")
    from empirical.doctor import examine

    findings = examine(workers=workers, results=out)
    click.echo(_as_json(findings) if as_json else _as_text(findings))
    sys.exit(VIOLATED if any(finding.state == "failed" for finding in findings) else OK)


def _as_json(findings: list[Finding]) -> str:
    from dataclasses import asdict

    return json.dumps([asdict(finding) for finding in findings], indent=2)


def _as_text(findings: list[Finding]) -> str:
    """A heading per section, a line per finding, and its advice below it."""
    width = max(len(finding.name) for finding in findings)
    lines, section = [], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        lines.append(f"{_MARKS[finding.state]} {finding.name:{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"  {'':{width}}  {finding.advice}")
    return "\n".join(lines)
