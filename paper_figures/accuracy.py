"""Clean accuracy against sparsity, which every robustness must be read beside."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, sparsity_axis
from paper_figures.curves import COLLAPSE, arithmetic
from paper_figures.layout import TWO_COLUMNS, condition_handles, legend_above, panels
from paper_figures.looks import GREY, look_of
from paper_figures.subjects import abscissa, seed_values, subjects

_LEVEL = (0, (1, 2))


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Clean test accuracy by subject and condition, with the level below which other figures fade.

    Rows used: ``accuracy`` (clean).
    """
    found = subjects(table)
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(1, len(found), width=width, height=1.9)
        for axes, subject in zip(grid.axes[0], found, strict=True):
            for condition in subject.conditions:
                curve = arithmetic(seed_values(subject, condition, "accuracy", method="clean"))
                everywhere = pd.Series(data=True, index=curve.sparsity)
                draw(axes, curve, look_of(condition), everywhere, everywhere)
                if condition == "dense":
                    level = (1 - COLLAPSE) * curve.mean
                    axes.plot(curve.sparsity, level, color=GREY, linewidth=0.8, linestyle=_LEVEL)
            sparsity_axis(axes, subject.levels)
            axes.set_ylim(0, 1.03)
        grid.label(["clean accuracy"], [subject.title for subject in found], below=abscissa(table))
        handles = condition_handles(found)[:-1]
        if any("dense" in subject.conditions for subject in found):
            label = f"{1 - COLLAPSE:.0%} of dense accuracy".replace("%", " %")
            handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=_LEVEL, label=label))
        legend_above(grid.figure, handles)
    return grid.figure
