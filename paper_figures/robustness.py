"""Robustness against sparsity: what was measured, and what the theorems say of the same networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import (
    BOUND,
    CONDITIONS,
    FAMILIES,
    GREY,
    STYLE,
    WIDTH,
    condition_handles,
    draw,
    largest,
    legend_above,
    linear_limits,
    sparsity_axis,
    without_rows,
)
from paper_figures.curves import arithmetic, intact, present, seed_values, uncapped

# quantity, norm and method of a row of panels, and its label
_ROWS = (
    ("mean_radius", "l2", "best", r"mean radius $R_2$"),
    ("mean_radius", "linf", "best", r"mean radius $R_\infty$"),
    ("fgs_accuracy", "linf", "fgs in the box", r"$r_\infty(\varepsilon)$, clipped"),
    ("fgs_accuracy", "linf", "fgs", r"$r_\infty(\varepsilon)$, not clipped"),
)
# The tightest bound that does not merely repeat the measured value, per quantity and family.
_BOUNDS = {
    ("mean_radius", "linear-binary"): ("Hölder on the support", "v"),
    ("mean_radius", "linear"): ("Jensen", "v"),
    ("mean_radius", "mlp"): ("certificate", "^"),
    ("fgs_accuracy", "linear-binary"): ("Markov", "v"),
}
# A ceiling this much above everything else is named, not drawn: it would flatten the curves.
_FAR = 1.9


def figure(table: pd.DataFrame) -> Figure:
    """Mean radius and FGS accuracy by family and condition, with exact values, bounds and the ceiling.

    Rows used: ``mean_radius`` (best, exact, certificate, Jensen, Hölder on the support, universal ceiling)
    and ``fgs_accuracy`` (fgs in the box, fgs, Markov). The exact radius is drawn for every condition; bounds
    belong to the magnitude-pruned networks; the ceiling is the dense networks' highest.
    A curve is thin where accuracy has collapsed, and ends where the cap dominates its mean.
    """
    families = present(table, "family", tuple(FAMILIES))
    if not families:
        return without_rows("The table holds no network.")
    with rc_context(fname=STYLE):
        drawn = Figure(figsize=(WIDTH, 8.0), layout="constrained")
        panels = drawn.subplots(len(_ROWS), len(families), squeeze=False, sharex="col")
        for column, family in enumerate(families):
            for row, (quantity, norm, method, label) in enumerate(_ROWS):
                axes = panels[row, column]
                _panel(axes, table, family, quantity=quantity, norm=norm, method=method)
                if column == 0:
                    axes.set_ylabel(label)
            panels[0, column].set_title(FAMILIES[family], loc="left", fontweight="bold")
            panels[-1, column].set_xlabel("sparsity (%)")
        drawn.align_ylabels(panels[:, 0])
        legend_above(drawn, _handles(present(table, "pruning", tuple(CONDITIONS))), columns=3)
    return drawn


def _panel(axes: Axes, table: pd.DataFrame, family: str, *, quantity: str, norm: str, method: str) -> None:
    values: list[np.ndarray] = []
    ceiling = 0.0
    of_family = table[table["family"] == family]
    for condition in present(of_family, "pruning", tuple(CONDITIONS)):

        def curve(source: str, condition: str = condition):
            found = seed_values(
                of_family, family=family, pruning=condition, quantity=quantity, method=source, norm=norm
            )
            return arithmetic(found)

        whole = intact(of_family, family, condition)
        shown = whole | True
        if quantity == "mean_radius":
            shown = uncapped(of_family, family, condition, method=method, norm=norm)
        values.append(draw(axes, curve(method), CONDITIONS[condition], shown, whole))
        exact = curve("exact")
        keep = (whole & shown).reindex(exact.sparsity, fill_value=False).to_numpy(dtype=bool)
        axes.plot(
            exact.sparsity[keep],
            exact.mean[keep],
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markeredgewidth=0.7,
            color=CONDITIONS[condition].colour,
        )
        if condition == "magnitude" and (quantity, family) in _BOUNDS and method != "fgs in the box":
            name, marker = _BOUNDS[quantity, family]
            bound = curve(name)
            axes.plot(bound.sparsity, bound.mean, color=BOUND, marker=marker, linewidth=0.8)
            values.append(bound.mean)
        if condition == "dense" and quantity == "mean_radius":
            ceiling = largest([curve("universal ceiling").mean])
    if ceiling > 0:
        axes.set_title(f"ceiling {ceiling:.2f}", loc="right", color=GREY, fontsize=7)
    if 0 < ceiling <= _FAR * largest(values):
        axes.axhline(ceiling, color=GREY, linewidth=1.0, linestyle=(0, (2, 1)))
        values.append(np.array([ceiling]))
    sparsity_axis(axes, of_family["sparsity"][of_family["sparsity"] < 1].unique())
    linear_limits(axes, values)


def _handles(conditions: list[str]) -> list[Line2D]:
    return [
        *condition_handles(conditions),
        Line2D(
            [],
            [],
            color=GREY,
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            label="exact radius (theory)",
        ),
        Line2D([], [], color=BOUND, marker="v", linewidth=0.8, label="upper bound (magnitude)"),
        Line2D([], [], color=BOUND, marker="^", linewidth=0.8, label="certificate, lower (magnitude)"),
        Line2D([], [], color=GREY, linewidth=1.0, linestyle=(0, (2, 1)), label="universal ceiling (dense)"),
    ]
