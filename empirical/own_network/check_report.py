"""The page about one network: every number with its nature, its norm, its n and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from empirical.own_network.against import Reference
from empirical.own_network.check import NOT_COVERED, Findings
from empirical.own_network.check_facts import HARMLESS, accuracy, attacked_accuracy, harmless, layers
from empirical.own_network.check_tables import change, number, percent, tables
from empirical.own_network.further_pruning import DRAWS
from empirical.own_network.sandwiches import Sandwich, curves
from empirical.own_network.tables import NORMS, Cells
from empirical.pages import Picture, save_picture, setting, write_page
from paper_figures import bounds, further_pruning, robust_accuracy
from paper_figures.layout import WIDTHS


@dataclass(frozen=True)
class Fact:
    """One number that comes first: its name, nature and meaning, and how many examples it is from, if any."""

    name: str
    value: str
    nature: str
    meaning: str
    examples: int = 0


def write_check(findings: Findings, out: Path, *, command: str) -> None:
    """Write figures/*.svg and report.html into ``out``."""
    attacked, told = attacked_accuracy(findings), accuracy(findings)
    radii = _radii(findings.radii, attacked.count)
    content = {
        "model": findings.network.name,
        "recognised": findings.network.recognised,
        "data": findings.settings["data"],
        "count": attacked.count,
        "tested": told.count,
        "facts": _facts(findings),
        "layers": layers(findings),
        "accuracy": attacked,
        "pictures": _pictures(findings, out),
        "told": " ".join(f"{fact.name}: {fact.value}." for fact in radii),
        "not_covered": NOT_COVERED,
        "unproved": findings.bounds if isinstance(findings.bounds, str) else "",
        "unmasked": findings.unmasked,
        "moments": findings.moments,
        "draws": DRAWS,
        "reference": findings.reference.network.name if findings.reference else "",
        "settings": {name: setting(entry) for name, entry in findings.settings.items() if entry is not None}
        | findings.provenance
        | {"command": command},
    } | tables(findings, correct=attacked.value, count=attacked.count)
    write_page(out / "report.html", "check.html.j2", content)


def summary_table(findings: Findings) -> tuple[Cells, list[Cells]]:
    """The first facts for a terminal, each with the number of examples that it is from."""
    facts = _facts(findings)
    lines = [
        (fact.name, fact.value, fact.nature, f"{fact.examples:,}" if fact.examples else "") for fact in facts
    ]
    return ("check", "", "", "n"), lines


def _facts(findings: Findings) -> list[Fact]:
    whole, told = layers(findings)[-1], accuracy(findings)
    found = [
        Fact(
            "Sparsity",
            f"{100 * whole.sparsity:.1f} %",
            "identity",
            f"{whole.zeros:,} of {whole.weights:,} weights are zero.",
        ),
        Fact(
            "Clean accuracy",
            f"{100 * told.value:.3g} % [{100 * told.low:.1f}, {100 * told.high:.1f}]",
            "measured",
            f"With its 95 % interval, from n = {told.count:,} examples.",
            told.count,
        ),
        *_radii(findings.radii, attacked_accuracy(findings).count),
    ]
    if findings.reference is not None:
        found += _beside(findings.reference)
    levels = findings.further["sparsity"]
    level, first = harmless(findings), float(levels[levels > 0].min())
    if level is None:
        value = "nothing to lose"
        meaning = (
            f"It is right at {percent(told.value)} of n = {told.count:,} examples, a constant decision at "
            f"{percent(findings.constant)}: see whether data and network belong together."
        )
    else:
        value = percent(level) if level else f"under {percent(first)}"
        meaning = (
            "of the remaining weights, the smallest of every layer, at a loss of at most "
            f"{100 * HARMLESS:.0f} points of accuracy, n = {told.count:,}; robustness may change before."
        )
    return [*found, Fact("Prunable without retraining", value, "measured", meaning, told.count)]


def _radii(parts: Sequence[Sandwich], count: int) -> list[Fact]:
    """Between what ends the mean radius lies, in each norm."""
    found = []
    for part in parts:
        name = f"Mean radius, {NORMS[part.norm]}"
        upper = number(part.mean_attacked)
        ceiling = ""
        if math.isfinite(part.ceiling):
            ceiling = (
                f"; no classifier that is right on the same examples has more than {number(part.ceiling)}"
            )
        if part.mean_certified is None:
            meaning = f"The best attack needs this much on average; the truth is at most that{ceiling}."
            found.append(Fact(name, f"≤ {upper}", "measured", f"{meaning} n = {count}.", count))
            continue
        meaning = (
            "Certified below, measured by the best attack above: the mean smallest change of an input that "
            f"makes the network err lies between{ceiling}. n = {count}."
        )
        value = f"{number(part.mean_certified)} to {upper}"
        found.append(Fact(name, value, "lower bound, measured", meaning, count))
    return found


def _beside(reference: Reference) -> list[Fact]:
    """How accuracy and radii differ from the dense network's."""
    found = []
    for norm in ("", *NORMS):
        for row in reference.about(norm):
            if row.nature != "measured" or row.quantity not in ("accuracy", "mean_radius"):
                continue
            tell = number if norm else percent
            meaning = (
                f"{tell(row.pruned)} against {tell(row.dense)}, n = {row.examples:,} examples, with the 95 % "
                f"interval over these. {_certainty(reference, norm)}"
            )
            title = f"Mean radius, {NORMS[norm]}," if norm else "Accuracy"
            name = f"{title} beside {reference.network.name}"
            found.append(Fact(name, change(row), row.nature, meaning.strip(), row.examples))
    return found


def _certainty(reference: Reference, norm: str) -> str:
    """What certificates and attacks leave of a measured change; nothing where there are no certificates."""
    sure = {row.quantity: row for row in reference.about(norm, bounded=True)}
    if not sure:
        return ""
    mean, each = sure["mean_radius"], sure["more_robust"]
    verdict = "Attacks measure it, no certificate settles it"
    if mean.low > 0 or mean.high < 0:
        verdict = f"On these examples the {'gain' if mean.low > 0 else 'loss'} is certain"
    return (
        f"{verdict}: certainly more robust at {percent(each.pruned)} of the examples, less at "
        f"{percent(each.dense)}."
    )


def _pictures(findings: Findings, out: Path) -> dict[str, Picture]:
    """Every figure that there is something to draw for, by name."""
    figures: dict[str, Callable[[float], Figure]] = {
        "robust_accuracy": lambda width: robust_accuracy.figure(curves(findings.radii), width=width),
        "further_pruning": lambda width: further_pruning.figure(findings.further, width=width),
    }
    if isinstance(findings.bounds, pd.DataFrame):
        rows = findings.bounds
        figures["bounds"] = lambda width: bounds.figure(rows, width=width)
    if findings.reference is not None:
        both = pd.concat([curves(findings.radii), curves(findings.reference.radii).assign(network="dense")])
        figures["against"] = lambda width: robust_accuracy.figure(both, width=width)
    wide, narrow = WIDTHS["two-column"], WIDTHS["one-column"]
    return {
        name: save_picture(out / "figures", name, wide=draw(wide), narrow=draw(narrow), formats=("svg",))
        for name, draw in figures.items()
    }
