"""The page about one network: every number with its nature, its norm, its n and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from empirical.own_network.check import Findings
from empirical.own_network.check_facts import (
    HARMLESS,
    Sandwich,
    accuracy,
    curves,
    harmless,
    layers,
    sandwiches,
)
from empirical.own_network.check_tables import number, percent, tables
from empirical.own_network.further_pruning import DRAWS
from empirical.own_network.tables import NORMS, Cells
from empirical.pages import Picture, save_picture, setting, write_page
from paper_figures import bounds, further_pruning, robust_accuracy
from paper_figures.layout import WIDTHS


@dataclass(frozen=True)
class Fact:
    """One number that comes first: its name, nature and meaning."""

    name: str
    value: str
    nature: str
    meaning: str


def write_check(findings: Findings, out: Path, *, command: str) -> None:
    """Write figures/*.svg and report.html into ``out``."""
    value, low, high, count = accuracy(findings)
    parts = sandwiches(findings)
    content = {
        "model": findings.network.name,
        "recognised": findings.network.recognised,
        "data": findings.settings["data"],
        "count": count,
        "facts": _facts(findings, parts),
        "layers": layers(findings),
        "accuracy": {"value": value, "low": low, "high": high},
        "pictures": _pictures(findings, out),
        "told": " ".join(f"{fact.name}: {fact.value}." for fact in _facts(findings, parts)[2:-1]),
        "unproved": findings.bounds if isinstance(findings.bounds, str) else "",
        "unmasked": findings.unmasked,
        "moments": findings.moments,
        "draws": DRAWS,
        "settings": {name: setting(entry) for name, entry in findings.settings.items() if entry is not None}
        | findings.provenance
        | {"command": command},
    } | tables(findings, parts, correct=value, count=count)
    write_page(out / "report.html", "check.html.j2", content)


def summary_table(findings: Findings) -> tuple[Cells, list[Cells]]:
    """The first facts for a terminal."""
    facts = _facts(findings, sandwiches(findings))
    return ("check", "", ""), [(fact.name, fact.value, fact.nature) for fact in facts]


def _facts(findings: Findings, parts: Sequence[Sandwich]) -> list[Fact]:
    whole = layers(findings)[-1]
    value, low, high, count = accuracy(findings)
    found = [
        Fact(
            "Sparsity",
            f"{100 * whole.sparsity:.1f} %",
            "identity",
            f"{whole.zeros:,} of {whole.weights:,} weights are zero.",
        ),
        Fact(
            "Clean accuracy",
            f"{100 * value:.3g} %",
            "measured",
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} % from n = {count} examples: what follows "
            "cannot be finer than that.",
        ),
    ]
    for part in parts:
        name = f"Mean radius, {NORMS[part.norm]}"
        upper = number(part.mean_attacked)
        if part.mean_certified is None:
            meaning = "The best attack needs this much on average; the truth is at most that."
            found.append(Fact(name, f"≤ {upper}", "measured", f"{meaning} n = {count}."))
            continue
        ceiling = ""
        if part.ceiling is not None and math.isfinite(part.ceiling):
            ceiling = (
                f"; no classifier that is right on the same examples has more than {number(part.ceiling)}"
            )
        meaning = (
            "Certified below, measured by the best attack above: the mean smallest change of an input that "
            f"makes the network err lies between{ceiling}. n = {count}."
        )
        found.append(
            Fact(name, f"{number(part.mean_certified)} to {upper}", "lower bound, measured", meaning)
        )
    levels = findings.further["sparsity"]
    level, first = harmless(findings), float(levels[levels > 0].min())
    found.append(
        Fact(
            "Prunable without retraining",
            percent(level) if level else f"under {percent(first)}",
            "measured",
            "of the remaining weights, the smallest of every layer, at a loss of at most "
            f"{100 * HARMLESS:.0f} points of clean accuracy, n = {count}; robustness may change before.",
        )
    )
    return found


def _pictures(findings: Findings, out: Path) -> dict[str, Picture]:
    """Every figure that there is something to draw for, by name."""
    figures: dict[str, Callable[[float], Figure]] = {
        "robust_accuracy": lambda width: robust_accuracy.figure(curves(findings), width=width),
        "further_pruning": lambda width: further_pruning.figure(findings.further, width=width),
    }
    if isinstance(findings.bounds, pd.DataFrame):
        rows = findings.bounds
        figures["bounds"] = lambda width: bounds.figure(rows, width=width)
    wide, narrow = WIDTHS["two-column"], WIDTHS["one-column"]
    return {
        name: save_picture(out / "figures", name, wide=draw(wide), narrow=draw(narrow), formats=("svg",))
        for name, draw in figures.items()
    }
