"""The tables of the page about one network, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from empirical.own_network.accuracies import MORE
from empirical.own_network.against import Reference, Row
from empirical.own_network.check import Findings
from empirical.own_network.further_pruning import DRAWS
from empirical.own_network.problem import RADII
from empirical.own_network.sandwiches import Sandwich
from empirical.own_network.tables import NORMS, Cells, attack_tables, bound_tables

_SHOWN_RADII = {"linf": RADII[math.inf][1:], "l2": RADII[2.0][1:]}
# What a short name of a bound's side is called in full.
_NATURES = {"lower": "lower bound", "upper": "upper bound"}


@dataclass(frozen=True)
class Shown:
    """A table: what it holds, what kind of numbers, header and lines of text."""

    caption: str
    nature: str
    header: Cells
    lines: Sequence[Cells]


def tables(findings: Findings, *, correct: float, count: int) -> dict[str, object]:
    """All tables by their names on the page; ``crown`` says where linear relaxation ended."""
    rows = findings.measured[findings.measured["example"].isna()]
    proved = bound_tables(findings.bounds)[1:] if isinstance(findings.bounds, pd.DataFrame) else []
    crown = _of_crown(findings, count)
    certified = f"n = {count} examples" + (f"; CROWN and local: {crown}" if crown else "")
    attacked = f"n = {count} examples, eps = {findings.settings['eps']}"
    return {
        "crown": crown,
        "sandwiches": [_sandwich_table(part, count) for part in findings.radii],
        "certificates": [
            _renamed(f"{header[0]}, {certified}", header, lines)
            for header, lines in proved
            if header[0] in NORMS.values()
        ],
        "masks": [
            Shown(header[0], "upper bound", ("sparsity of the masks", *header[1:]), lines)
            for header, lines in proved
            if header[0] not in NORMS.values()
        ],
        "attacks": [
            Shown(f"{header[0]}, {attacked}", "measured", ("attack", *header[1:]), lines)
            for header, lines in attack_tables(rows)[1:]
        ],
        "stepped": _stepped(rows, count),
        "decomposition": _decomposition(rows, correct, count),
        "magnitude": _magnitude_table(findings, count),
        "random": _random_table(findings, count),
        "changes": [_change_table(findings.further, norm, count) for norm in NORMS],
        "beside": [] if findings.reference is None else _beside_tables(findings.reference),
    }


def _sandwich_table(part: Sandwich, count: int) -> Shown:
    radii = _SHOWN_RADII[part.norm]
    certain, attacked, most = zip(*(part.shares(radius) for radius in radii), strict=True)
    lines: list[Cells] = [("best attack", "measured", number(part.mean_attacked), *map(percent, attacked))]
    if part.mean_certified is not None:
        lines.insert(0, ("certified", "lower bound", number(part.mean_certified), *map(percent, certain)))
    lines.append(("any classifier", "upper bound", number(part.ceiling), *map(percent, most)))
    header = ("source", "nature", "mean radius", *(f"robust at {radius:g}" for radius in radii))
    return Shown(f"{NORMS[part.norm]}, n = {count} examples", "", header, lines)


def _renamed(caption: str, header: Cells, lines: Sequence[Cells]) -> Shown:
    """A table of bounds with the sides of the bounds in full."""
    told = [(line[0], _NATURES[line[1]], *line[2:]) for line in lines]
    return Shown(caption, "", ("quantity", "nature", *header[2:]), told)


def _of_crown(findings: Findings, count: int) -> str:
    """Which examples linear relaxation certified, if not all."""
    if isinstance(findings.bounds, str) or findings.crown == count:
        return ""
    return f"the first {findings.crown} examples" if findings.crown else "not run"


def _stepped(rows: pd.DataFrame, count: int) -> Shown:
    """Accuracy after one fast gradient step."""
    fgs = rows[rows["quantity"] == "fgs_accuracy"].drop_duplicates("method")
    lines = [
        (str(method), f"{eps:g}", percent(value))
        for method, eps, value in fgs[["method", "eps", "value"]].itertuples(index=False)
    ]
    return Shown(f"l_inf, one step, n = {count} examples", "measured", ("attack", "step", "accuracy"), lines)


def _decomposition(rows: pd.DataFrame, correct: float, count: int) -> Shown:
    """Margin, gradient norm and their ratio beside the measured mean radius, in both norms."""
    whole = rows.drop_duplicates(["quantity", "method", "norm"])

    def value(quantity: str, method: str, norm: str) -> float:
        found = whole[(whole["quantity"] == quantity) & (whole["method"] == method) & (whole["norm"] == norm)]
        return float(found["value"].iloc[0]) if len(found) else math.nan

    margin = [value("margin", "nearest boundary", norm) for norm in NORMS]
    slope = [value("gradient_norm", "nearest boundary", norm) for norm in NORMS]
    ratio = [correct * m / s if s else math.inf for m, s in zip(margin, slope, strict=True)]
    best = [value("mean_radius", "best", norm) for norm in NORMS]
    lines = [
        (name, nature, *map(number, values))
        for name, nature, values in (
            ("mean margin", "measured", margin),
            ("mean gradient norm", "measured", slope),
            ("accuracy x margin / gradient", "estimate", ratio),
            ("mean radius, best attack", "measured", best),
        )
    ]
    return Shown(
        f"At the nearest boundary, n = {count} examples", "", ("quantity", "nature", *NORMS.values()), lines
    )


def _picked(
    rows: pd.DataFrame, pruning: str, level: float, quantity: str, method: str, norm: str
) -> pd.Series:
    chosen = (rows["pruning"] == pruning) & (rows["sparsity"] == level) & (rows["quantity"] == quantity)
    return rows.loc[chosen & (rows["method"] == method) & (rows["norm"] == norm), "value"]


def _magnitude_table(findings: Findings, count: int) -> Shown:
    rows = findings.further
    own = rows[rows["pruning"] == "one-shot"]
    lines = []
    for level in sorted(own["sparsity"].unique()):
        achieved = float(own.loc[own["sparsity"] == level, "achieved_sparsity"].iloc[0])
        values = [
            float(_picked(rows, "one-shot", level, *which).iloc[0])
            for which in (("mean_radius", "best", "linf"), ("mean_radius", "best", "l2"))
        ]
        clean = float(_picked(rows, "one-shot", level, "accuracy", MORE, "").iloc[0])
        lines.append((percent(level), percent(achieved), percent(clean), *map(number, values)))
    header = ("removed", "sparsity", "clean accuracy", "R_inf", "R_2")
    told = f"Smallest weights removed, accuracy on n = {findings.tested:,} examples, fast attacks on {count}"
    return Shown(told, "measured", header, lines)


def _random_table(findings: Findings, count: int) -> Shown:
    """Random masks: the mean of the draws, and what moment propagation predicts where it applies."""
    rows = findings.further
    lines = []
    for level in sorted(rows.loc[rows["pruning"] == "random", "sparsity"].unique()):
        cells = [percent(level)]
        for quantity, method, norm, tell in (
            ("accuracy", "clean", "", percent),
            ("mean_radius", "best", "linf", number),
            ("mean_radius", "best", "l2", number),
        ):
            measured = _picked(rows, "random" if level else "one-shot", level, quantity, method, norm)
            predicted = _picked(rows, "random", level, quantity, "moment propagation", norm)
            cells.append(tell(float(measured.mean())))
            if not findings.moments:
                cells.append(tell(float(predicted.iloc[0])))
        lines.append(tuple(cells))
    pair = ("measured", "predicted") if not findings.moments else ("measured",)
    header = ("removed", *(f"{name}, {how}" for name in ("accuracy", "R_inf", "R_2") for how in pair))
    nature = "measured, estimate" if not findings.moments else "measured"
    return Shown(f"Random weights removed, {DRAWS} masks, n = {count} examples", nature, header, lines)


def _change_table(rows: pd.DataFrame, norm: str, count: int) -> Shown:
    """Where each change of the mean radius comes from, in natural logarithms."""
    lines = []
    own = rows[(rows["quantity"] == "log_change") & (rows["norm"] == norm)]
    for level in sorted(own["sparsity"].unique()):
        at = own[own["sparsity"] == level].set_index("method")["value"]
        if at.notna().all():
            cells = (f"{at[name]:+.2f}" for name in ("total", "margin", "gradient", "remainder"))
            lines.append((percent(level), f"{100 * math.expm1(at['total']):+.0f} %", *cells))
    header = ("removed", "change of R", "ln of it", "= margin", "+ gradient", "+ remainder")
    return Shown(f"{NORMS[norm]}, magnitude pruning, n = {count} examples", "identity", header, lines)


# What the quantities of a comparison are called, and what they are counted in.
_QUANTITIES = {
    "sparsity": "sparsity",
    "accuracy": "clean accuracy",
    "mean_radius": "mean radius, best attack",
    "mean_certified_radius": "mean certified radius",
    "margin": "mean margin",
    "gradient_norm": "mean gradient norm",
}


def _beside_tables(reference: Reference) -> list[Shown]:
    """The two networks, and their radii in each norm."""
    found = []
    for norm, title in {"": "Sparsity and accuracy", **NORMS}.items():
        rows = reference.about(norm)
        tell = number if norm else percent
        lines: list[Cells] = [
            (_QUANTITIES[row.quantity], row.nature, tell(row.dense), tell(row.pruned), change(row))
            for row in rows
        ]
        for row in reference.about(norm, bounded=True):
            if row.quantity == "mean_radius":
                ends = f"{_signed(row.low)} to {_signed(row.high)} %"
                lines.append(("mean radius, what is certain", row.nature, "–", "–", ends))
            else:
                shares = percent(row.dense), percent(row.pruned)
                lines.append(("certainly more robust at", row.nature, *shares, change(row)))
        if rows:
            header = ("quantity", "nature", reference.network.name, "this network", "change")
            found.append(Shown(f"{title}, n = {rows[0].examples:,} examples", "", header, lines))
    return found


def change(row: Row) -> str:
    """A change with its interval if it has one: in points of what is a share, else in percent."""
    if math.isnan(row.change):
        return "–"
    unit = "points" if row.quantity in ("sparsity", "accuracy", "more_robust") else "%"
    interval = "" if math.isnan(row.low) else f" [{_signed(row.low)}, {_signed(row.high)}]"
    return f"{_signed(row.change)}{interval} {unit}"


def _signed(share: float) -> str:
    """In hundredths, with its sign."""
    return "–" if math.isnan(share) else f"{100 * share:+.1f}"


def number(value: float | None) -> str:
    """Three digits, all of a large number; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share in percent; a dash for none."""
    return "–" if share is None else f"{100 * share:.3g} %"
