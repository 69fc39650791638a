"""Around single examples: radii and Lipschitz constants, bounded, estimated, exact, and what attacks miss."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, draw, linear_limits, log_limits, sparsity_axis
from paper_figures.curves import TELLING, arithmetic, geometric, intact
from paper_figures.layout import TWO_COLUMNS, by_norm, labelled, legend_above, panels
from paper_figures.looks import STRONG_LOOK, WEAK, WEAK_LOOK, Look
from paper_figures.subjects import Subject, abscissa, relu, seed_values, subjects

_ESTIMATE, _BOUND = "#D55E00", "#009E73"
_LINES = {
    "local_radius": {
        "exact, upper": (Look("exact radius", "#000000", (0, (1.2, 1.2))), ""),
        "CLEVER": (Look("CLEVER, an estimate", _ESTIMATE, (0, (4, 1.2))), "s"),
        "CROWN": (Look("bound by linear relaxation", _BOUND, (0, (5, 1.5))), "^"),
    },
    "local_lipschitz": {
        "interval": (Look("bound by intervals, or global", "#CC79A7", (0, (7, 1.2))), "v"),
        "relaxation": (Look("bound by linear relaxation", _BOUND, (0, (5, 1.5))), "^"),
        "CLEVER": (Look("CLEVER, an estimate", _ESTIMATE, (0, (4, 1.2))), "s"),
        "sampled": (Look("largest gradient sampled", "#0072B2", (0, (1.2, 1.2))), "D"),
    },
    "missed": {
        "weak": (WEAK_LOOK, "o"),
        "fmn": (Look("FMN from the example", "#56B4E9", (0, (3, 1))), "v"),
        "best": (STRONG_LOOK, "o"),
    },
}
_ROWS = {
    "local_radius": "mean radius",
    "local_lipschitz": "Lipschitz constant",
    "missed": "examples missed (%)",
}


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Radii, Lipschitz constants on balls, and what attacks miss, of one way of pruning; ReLU networks.

    Rows used: ``local_radius``, ``local_lipschitz`` and ``missed`` of those methods, of the same examples.
    """
    found = [(subject, condition) for subject in relu(subjects(table)) if (condition := _shown(subject))]
    if not found:
        return None
    conditions = {subject.title: condition for subject, condition in found}
    columns = by_norm([subject for subject, _ in found])
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(columns), width=width, height=1.7, together=2)
        for (subject, norm, _), below in zip(columns, grid.axes.T, strict=True):
            for axes, quantity in zip(below, _ROWS, strict=True):
                _panel(axes, subject, conditions[subject.title], quantity=quantity, norm=norm)
        grid.label(list(_ROWS.values()), [title for *_, title in columns], below=abscissa(table))
        legend_above(grid.figure, labelled(grid.figure))
    return grid.figure


def _shown(subject: Subject) -> str:
    """The condition to show; none if no network has such rows at several sparsities."""
    for condition in TELLING:
        for quantity, methods in _LINES.items():
            for method in methods:
                if seed_values(subject, condition, quantity, method=method, norm="l2").shape[1] > 1:
                    return condition
    return ""


def _panel(axes: Axes, subject: Subject, condition: str, *, quantity: str, norm: str) -> None:
    whole, held = intact(subject, condition), []
    for method, (look, marker) in _LINES[quantity].items():
        name = WEAK[norm][0] if method == "weak" else method
        values = seed_values(subject, condition, quantity, method=name, norm=norm)
        if not values.size:
            continue
        curve = arithmetic(values).scaled(100) if quantity == "missed" else geometric(values)
        held.append(draw(axes, curve, look, whole | True, whole, marker=marker))
    if held and quantity == "missed":
        linear_limits(axes, held)
    elif held:
        log_limits(axes, held)
    sparsity_axis(axes, subject.levels)
