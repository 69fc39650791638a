"""Robustness against sparsity: what was measured, and what the theorems say of the same networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, largest, linear_limits, say_not_measured, sparsity_axis
from paper_figures.curves import Curve, arithmetic, intact, uncapped
from paper_figures.layout import TWO_COLUMNS, condition_handles, legend_above, panels
from paper_figures.looks import BOUND, GREY, look_of
from paper_figures.subjects import Subject, abscissa, is_measured, seed_values, subjects

# quantity, norm and method of a row of panels, and its label
_ROWS = (
    ("mean_radius", "l2", "best", r"mean radius $R_2$"),
    ("mean_radius", "linf", "best", r"mean radius $R_\infty$"),
    ("fgs_accuracy", "linf", "fgs in the box", r"$r_\infty(\varepsilon)$, clipped"),
    ("fgs_accuracy", "linf", "fgs", r"$r_\infty(\varepsilon)$, not clipped"),
)
# The tightest bound that does not merely repeat the measured value, per quantity and family; its marker.
_BOUNDS = {
    ("mean_radius", "linear-binary"): ("Hölder on the support", "v"),
    ("mean_radius", "linear"): ("Jensen", "v"),
    ("mean_radius", "mlp"): ("certificate", "^"),
    ("fgs_accuracy", "linear-binary"): ("Markov", "v"),
}
_EXACT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "white"}
_CEILING: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (2, 1))}
_NAMES = {"v": "upper bound (magnitude)", "^": "certificate (magnitude)"}
# A ceiling this much above everything else is named, not drawn: it would flatten the curves.
_FAR = 1.9


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Mean radius and FGS accuracy by subject and condition, with exact values, bounds and the ceiling.

    Rows used: ``mean_radius`` (best, exact, certificate, Jensen, Hölder on the support, universal ceiling)
    and ``fgs_accuracy`` (fgs in the box, fgs, Markov). The exact radius is drawn for every condition; bounds
    belong to the magnitude-pruned networks; the ceiling is the dense networks' highest.
    A curve is thin where accuracy has collapsed, and ends where the cap dominates its mean. A row that was
    measured of no subject is left out.
    """
    found = subjects(table)
    rows = [
        row
        for row in _ROWS
        if any(is_measured(subject, row[0], method=row[2], norm=row[1]) for subject in found)
    ]
    if not found or not rows:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(rows), len(found), width=width, height=1.75)
        for column, subject in enumerate(found):
            for axes, (quantity, norm, method, _) in zip(grid.axes[:, column], rows, strict=True):
                _panel(axes, subject, quantity=quantity, norm=norm, method=method)
        grid.label([row[-1] for row in rows], [subject.title for subject in found], below=abscissa(table))
        drawn = {line.get_gid() for axes in grid.figure.axes for line in axes.lines}
        legend_above(grid.figure, [*condition_handles(found), *_handles(drawn)])
    return grid.figure


def _panel(axes: Axes, subject: Subject, *, quantity: str, norm: str, method: str) -> None:
    if not is_measured(subject, quantity, method=method, norm=norm):
        say_not_measured(axes, subject.levels)
        return
    values: list[np.ndarray] = []
    ceiling = 0.0
    for condition in subject.conditions:

        def curve(source: str, condition: str = condition) -> Curve:
            return arithmetic(seed_values(subject, condition, quantity, method=source, norm=norm))

        look = look_of(condition)
        whole = intact(subject, condition)
        shown = whole | True
        if quantity == "mean_radius":
            shown = uncapped(subject, condition, method=method, norm=norm)
        values.append(draw(axes, curve(method), look, shown, whole))
        exact = curve("exact")
        keep = (whole & shown).reindex(exact.sparsity, fill_value=False).to_numpy(dtype=bool)
        if keep.any():
            axes.plot(exact.sparsity[keep], exact.mean[keep], color=look.colour, markeredgewidth=0.7,
                      gid="exact", **_EXACT)  # fmt: skip
        if condition == "magnitude" and (quantity, subject.family) in _BOUNDS and method != "fgs in the box":
            name, marker = _BOUNDS[quantity, subject.family]
            bound = curve(name)
            if bound.sparsity.size:
                axes.plot(bound.sparsity, bound.mean, color=BOUND, marker=marker, linewidth=0.8, gid=marker)
                values.append(bound.mean)
        if condition == "dense" and quantity == "mean_radius":
            ceiling = largest([curve("universal ceiling").mean])
    if ceiling > 0:
        axes.set_title(f"ceiling {ceiling:.2f}", loc="right", color=GREY, fontsize=7)
    if 0 < ceiling <= _FAR * largest(values):
        axes.axhline(ceiling, gid="ceiling", **_CEILING)
        values.append(np.array([ceiling]))
    sparsity_axis(axes, subject.levels)
    linear_limits(axes, values)


def _handles(drawn: set[str | None]) -> list[Line2D]:
    """Legend entries of the theory that is drawn."""
    every = {
        "exact": Line2D([], [], color=GREY, label="exact radius (theory)", **_EXACT),
        **{
            marker: Line2D([], [], color=BOUND, marker=marker, linewidth=0.8, label=name)
            for marker, name in _NAMES.items()
        },
        "ceiling": Line2D([], [], label="universal ceiling", **_CEILING),
    }
    return [line for name, line in every.items() if name in drawn]
