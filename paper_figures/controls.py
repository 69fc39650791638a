"""Controls: what every way to sparsity gains over the dense network that was trained equally long."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, draw, linear_limits, say_not_measured, sparsity_axis
from paper_figures.curves import (
    arithmetic,
    compared,
    intact,
    ratio_to_dense,
    reference,
    uncapped_ratio,
)
from paper_figures.layout import TWO_COLUMNS, condition_handles, legend_above, panels
from paper_figures.looks import GREY, NORM, look_of
from paper_figures.subjects import Subject, abscissa, is_measured, seed_values, subjects

_LOWEST = -100.0  # percent: a radius cannot lose more
_ROWS = (r"gain in $R_2$ (%)", r"gain in $R_\infty$ (%)", "change of accuracy (points)")


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Gain in mean radius and change of accuracy of every condition, paired by seed with its reference.

    Rows used: ``mean_radius`` (best) and ``accuracy`` (clean). The reference is the dense network trained
    equally long: for conditions that are not trained on after the first training, the network at sparsity 0.
    """
    found = [subject for subject in subjects(table) if compared(subject)]
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(found), width=width, height=1.9)
        for subject, (*gains, accuracy) in zip(found, grid.axes.T, strict=True):
            for axes, norm in zip(gains, NORM, strict=True):
                _gain(axes, subject, norm)
            _accuracy(accuracy, subject)
        grid.label(_ROWS, [subject.title for subject in found], below=abscissa(table))
        legend_above(
            grid.figure, condition_handles(found, {name for subject in found for name in compared(subject)})
        )
    return grid.figure


def _gain(axes: Axes, subject: Subject, norm: str) -> None:
    if not is_measured(subject, "mean_radius", method="best", norm=norm):
        say_not_measured(axes, subject.levels)
        return
    held = [np.zeros(1)]
    for condition in compared(subject):
        ratio = ratio_to_dense(subject, condition, "mean_radius", method="best", norm=norm)
        shown = uncapped_ratio(subject, condition, method="best", norm=norm)
        strong = draw(
            axes, arithmetic(100 * (ratio - 1)), look_of(condition), shown, intact(subject, condition)
        )
        held.append(np.maximum(strong, _LOWEST))
    _finish(axes, subject, held)


def _accuracy(axes: Axes, subject: Subject) -> None:
    held = [np.zeros(1)]
    for condition in compared(subject):
        own = seed_values(subject, condition, "accuracy", method="clean")
        change = 100 * (own - reference(subject, condition, "accuracy", method="clean"))
        change = change.dropna(axis="columns", how="all").dropna(axis="index", how="all")
        whole = intact(subject, condition)
        held.append(draw(axes, arithmetic(change), look_of(condition), whole | True, whole))
    _finish(axes, subject, held)


def _finish(axes: Axes, subject: Subject, held: list[np.ndarray]) -> None:
    linear_limits(axes, held, zero=False)
    axes.axhline(0, color=GREY, linewidth=0.8)
    sparsity_axis(axes, subject.levels)
