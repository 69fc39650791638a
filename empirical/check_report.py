"""The page about one network: every number with its nature, its norm, its n and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from empirical.bounds import RADII
from empirical.check import Findings
from empirical.check_facts import HARMLESS, Sandwich, accuracy, curves, harmless, layers, sandwiches
from empirical.further_pruning import DRAWS
from empirical.network_tables import NORMS, Cells, attack_tables, bound_tables
from empirical.pages import data_uri, save_figure, setting, write_page
from paper_figures import bounds, further_pruning, robust_accuracy
from paper_figures.layout import WIDTHS

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


@dataclass(frozen=True)
class Picture:
    """A figure for wide and for narrow screens, each as the source of an image."""

    wide: str
    narrow: str


@dataclass(frozen=True)
class Fact:
    """One number that comes first: its name, nature and meaning."""

    name: str
    value: str
    nature: str
    meaning: str


def write_check(findings: Findings, out: Path, *, command: str) -> Path:
    """Write figures/*.svg, figures/*.png and report.html into ``out``; returns the report's path."""
    value, low, high, count = accuracy(findings)
    parts = sandwiches(findings)
    proved = bound_tables(findings.bounds) if isinstance(findings.bounds, pd.DataFrame) else []
    crown = _of_crown(findings, count)
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
        "sandwiches": [_sandwich_table(part, count) for part in parts],
        "unproved": findings.bounds if isinstance(findings.bounds, str) else "",
        "crown": crown,
        "certificates": [
            _renamed(
                f"{header[0]}, n = {count} examples{crown and '; CROWN and local: ' + crown}", header, lines
            )
            for header, lines in proved[1:]
            if header[0] in NORMS.values()
        ],
        "masks": [
            _mask_table(header, lines) for header, lines in proved[1:] if header[0] not in NORMS.values()
        ],
        "attacks": [
            Shown(f"{header[0]}, n = {count} examples", "measured", ("attack", *header[1:]), lines)
            for header, lines in _whole(attack_tables, findings.measured)[1:]
        ],
        "stepped": _stepped(findings.measured, count),
        "decomposition": _decomposition(findings.measured, value, count),
        "magnitude": _magnitude_table(findings.further, count),
        "random": _random_table(findings, count),
        "changes": [_change_table(findings.further, norm, count) for norm in NORMS],
        "moments": findings.moments,
        "draws": DRAWS,
        "settings": {name: setting(entry) for name, entry in findings.settings.items() if entry is not None}
        | findings.provenance
        | {"command": command},
    }
    path = out / "report.html"
    write_page(path, "check.html.j2", content)
    return path


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
        upper = _number(part.mean_attacked)
        if part.mean_certified is None:
            meaning = "The best attack needs this much on average; the truth is at most that."
            found.append(Fact(name, f"≤ {upper}", "measured", f"{meaning} n = {count}."))
            continue
        ceiling = ""
        if part.ceiling is not None and math.isfinite(part.ceiling):
            ceiling = (
                f"; no classifier that is right on the same examples has more than {_number(part.ceiling)}"
            )
        meaning = (
            "Certified below, measured by the best attack above: the mean smallest change of an input that "
            f"makes the network err lies between{ceiling}. n = {count}."
        )
        found.append(
            Fact(name, f"{_number(part.mean_certified)} to {upper}", "lower bound, measured", meaning)
        )
    level = harmless(findings)
    found.append(
        Fact(
            "Prunable without retraining",
            f"{100 * level:.3g} %",
            "measured",
            "of the remaining weights, the smallest of every layer, at a loss of at most "
            f"{100 * HARMLESS:.0f} points of clean accuracy, n = {count}; robustness may change before.",
        )
    )
    return found


def _sandwich_table(part: Sandwich, count: int) -> Shown:
    radii = _SHOWN_RADII[part.norm]
    shares = [part.shares(radius) for radius in radii]
    lines: list[Cells] = []
    if part.mean_certified is not None:
        certain = tuple(_percent(share) for share, _ in shares)
        lines.append(("certified", "lower bound", _number(part.mean_certified), *certain))
    attacked = tuple(_percent(share) for _, share in shares)
    lines.append(("best attack", "measured", _number(part.mean_attacked), *attacked))
    if part.ceiling is not None:
        lines.append(("any classifier", "upper bound", _number(part.ceiling), *("" for _ in radii)))
    header = ("source", "nature", "mean radius", *(f"robust at {radius:g}" for radius in radii))
    return Shown(f"{NORMS[part.norm]}, n = {count} examples", "", header, lines)


def _of_crown(findings: Findings, count: int) -> str:
    """Which examples linear relaxation certified, if not all."""
    if isinstance(findings.bounds, str) or findings.crown == count:
        return ""
    return f"the first {findings.crown} examples" if findings.crown else "not run"


def _renamed(caption: str, header: Cells, lines: Sequence[Cells]) -> Shown:
    """A table of bounds with the sides of the bounds in full."""
    told = [(line[0], _NATURES[line[1]], *line[2:]) for line in lines]
    return Shown(caption, "", ("quantity", "nature", *header[2:]), told)


def _mask_table(header: Cells, lines: Sequence[Cells]) -> Shown:
    return Shown(header[0], "upper bound", ("sparsity of the masks", *header[1:]), lines)


def _whole(tables, rows: pd.DataFrame):  # noqa: ANN001, ANN202 - a function of this package
    return tables(rows[rows["example"].isna()])


def _stepped(rows: pd.DataFrame, count: int) -> Shown:
    """Accuracy after one fast gradient step."""
    fgs = rows[rows["quantity"] == "fgs_accuracy"].drop_duplicates("method")
    lines = [
        (str(method), f"{eps:g}", _percent(value))
        for method, eps, value in fgs[["method", "eps", "value"]].itertuples(index=False)
    ]
    return Shown(f"l_inf, one step, n = {count} examples", "measured", ("attack", "step", "accuracy"), lines)


def _decomposition(rows: pd.DataFrame, correct: float, count: int) -> Shown:
    """Margin, gradient norm and their ratio beside the measured mean radius, in both norms."""
    whole = rows[rows["example"].isna()].drop_duplicates(["quantity", "method", "norm"])

    def value(quantity: str, method: str, norm: str) -> float:
        found = whole[(whole["quantity"] == quantity) & (whole["method"] == method) & (whole["norm"] == norm)]
        return float(found["value"].iloc[0]) if len(found) else math.nan

    margin = [value("margin", "nearest boundary", norm) for norm in NORMS]
    slope = [value("gradient_norm", "nearest boundary", norm) for norm in NORMS]
    ratio = [correct * m / s if s else math.inf for m, s in zip(margin, slope, strict=True)]
    best = [value("mean_radius", "best", norm) for norm in NORMS]
    lines = [
        (name, nature, *map(_number, values))
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


def _magnitude_table(rows: pd.DataFrame, count: int) -> Shown:
    own = rows[rows["pruning"] == "one-shot"]
    lines = []
    for level in sorted(own["sparsity"].unique()):
        achieved = float(own.loc[own["sparsity"] == level, "achieved_sparsity"].iloc[0])
        values = [
            float(_picked(rows, "one-shot", level, *which).iloc[0])
            for which in (("mean_radius", "best", "linf"), ("mean_radius", "best", "l2"))
        ]
        clean = float(_picked(rows, "one-shot", level, "accuracy", "clean", "").iloc[0])
        lines.append((_percent(level), _percent(achieved), _percent(clean), *map(_number, values)))
    header = ("removed", "sparsity", "clean accuracy", "R_inf", "R_2")
    return Shown(f"Smallest weights removed, n = {count} examples, fast attacks", "measured", header, lines)


def _random_table(findings: Findings, count: int) -> Shown:
    """Random masks: the mean of the draws, and what moment propagation predicts where it applies."""
    rows = findings.further
    lines = []
    for level in sorted(rows.loc[rows["pruning"] == "random", "sparsity"].unique()):
        cells = [_percent(level)]
        for quantity, method, norm, tell in (
            ("accuracy", "clean", "", _percent),
            ("mean_radius", "best", "linf", _number),
            ("mean_radius", "best", "l2", _number),
        ):
            pruning, draws = ("one-shot", 1) if level == 0 else ("random", DRAWS)
            measured = _picked(rows, pruning, level, quantity, method, norm)
            assert len(measured) == draws
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
            lines.append((_percent(level), f"{100 * math.expm1(at['total']):+.0f} %", *cells))
    header = ("removed", "change of R", "ln of it", "= margin", "+ gradient", "+ remainder")
    return Shown(f"{NORMS[norm]}, magnitude pruning, n = {count} examples", "identity", header, lines)


def _pictures(findings: Findings, out: Path) -> dict[str, Picture]:
    """Every figure that there is something to draw for, by name."""
    figures: dict[str, Callable[[float], Figure]] = {
        "robust_accuracy": lambda width: robust_accuracy.figure(curves(findings), width=width),
        "further_pruning": lambda width: further_pruning.figure(findings.further, width=width),
    }
    if isinstance(findings.bounds, pd.DataFrame):
        rows = findings.bounds
        figures["bounds"] = lambda width: bounds.figure(rows, width=width)
    return {name: _saved(out / "figures", name, draw) for name, draw in figures.items()}


def _saved(folder: Path, name: str, draw: Callable[[float], Figure]) -> Picture:
    wide = save_figure(folder, name, draw(WIDTHS["two-column"]))
    narrow = save_figure(folder, f"{name}-narrow", draw(WIDTHS["one-column"]))
    return Picture(data_uri(wide), data_uri(narrow))


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"
