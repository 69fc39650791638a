"""Robustness against accuracy: what every sparsity gains in radius, for how much accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from paper_figures.axes import STYLE, linear_limits
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
from paper_figures.subjects import Subject, is_measured, seed_values, subjects

_ROWS = (r"gain in $R_2$ (%)", r"gain in $R_\infty$ (%)")
_LINEAR = 1.0  # points of accuracy: beyond, the axis is logarithmic
_TICKS = (-10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10)


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Gain in mean radius over the lost accuracy, a point for every sparsity, paired by seed.

    Rows used: ``mean_radius`` (best), ``capped`` and ``accuracy`` (clean); references as in ``controls``.
    Sparsities beyond collapse, and those at which an example withstood the attack, are left out.
    """
    found = [subject for subject in subjects(table) if compared(subject)]
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(found), width=width, height=1.9)
        for subject, column in zip(found, grid.axes.T, strict=True):
            lost = [np.zeros(1)]
            for axes, norm in zip(column, NORM, strict=True):
                lost += _gains(axes, subject, norm)
            _lost_accuracy(column, np.concatenate(lost))
        grid.label(_ROWS, [subject.title for subject in found], below="accuracy lost (pts)")
        names = {name for subject in found for name in compared(subject)}
        legend_above(grid.figure, condition_handles(found, names)[:-1])  # nothing is thin here
    return grid.figure


def _gains(axes: Axes, subject: Subject, norm: str) -> list[np.ndarray]:
    """Draw the lines of one norm; returns the accuracies lost."""
    if not is_measured(subject, "mean_radius", method="best", norm=norm):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
        return []
    held, lost = [np.zeros(1)], []
    for condition in compared(subject):
        gain = 100 * (ratio_to_dense(subject, condition, "mean_radius", method="best", norm=norm) - 1)
        own = seed_values(subject, condition, "accuracy", method="clean")
        change = 100 * (reference(subject, condition, "accuracy", method="clean") - own)
        shown = uncapped_ratio(subject, condition, method="best", norm=norm) & intact(subject, condition)
        levels = [level for level in gain.columns if level in change and shown.get(level, False)]
        over, cost = arithmetic(gain[levels]), arithmetic(change.loc[gain.index, levels]).mean
        look = look_of(condition)
        axes.errorbar(
            cost,
            over.mean,
            yerr=np.abs([over.mean - over.low, over.high - over.mean]),
            color=look.colour,
            linestyle=look.line,
            marker="o",
            markersize=2.5,
            elinewidth=0.6,
            label=look.label,
        )
        held += [over.mean, over.low, over.high]
        lost.append(cost)
    linear_limits(axes, held, zero=False)
    axes.axhline(0, color=GREY, linewidth=0.8)
    return lost


def _lost_accuracy(column: np.ndarray, lost: np.ndarray) -> None:
    """The common abscissa of one subject's panels: linear near 0, where accuracies differ by little."""
    finite = lost[np.isfinite(lost)]
    low, high = finite.min(), finite.max()
    pad = 0.15 * max(_LINEAR, abs(low), abs(high) ** 0.5)
    for axes in column:
        axes.set_xscale("symlog", linthresh=_LINEAR, subs=[1.0])
        axes.set_xlim(low - pad, high + pad * max(1.0, high))
        axes.set_xticks([tick for tick in _TICKS if low - pad <= tick <= high + pad])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.axvline(0, color=GREY, linewidth=0.8)
