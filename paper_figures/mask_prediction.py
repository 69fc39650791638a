"""Moment propagation: the mean radius it predicts for random masks, beside the measured one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, linear_limits, sparsity_axis
from paper_figures.curves import COLLAPSE, Curve, arithmetic, intact, uncapped
from paper_figures.layout import TWO_COLUMNS, labelled, legend_above, panels
from paper_figures.looks import GREY, NORM, Look
from paper_figures.subjects import Subject, seed_values, subjects

_ROWS = (r"mean radius $R_2$", r"mean radius $R_\infty$", "accuracy")
_PREDICTED, _MEASURED = "moment propagation", "best"
_LOOKS = {
    _MEASURED: Look("measured, best attack", "#000000", "solid"),
    _PREDICTED: Look("moment propagation", "#D55E00", (0, (4, 1.2))),
}


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Predicted and measured mean radius and accuracy of randomly masked networks, and their alpha*.

    Rows used: ``mean_radius`` and ``accuracy`` of ``moment propagation``, ``best`` and ``clean``, pruning
    ``random``. alpha* is the sparsity of the largest mean radius among those at which no network has
    collapsed, measured, or would by the predicted accuracies.
    """
    found = [
        subject
        for subject in subjects(table)
        if seed_values(subject, "random", "mean_radius", method=_PREDICTED, norm="l2").size
    ]
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(found), width=width, height=1.9)
        for subject, (*radii, accuracy) in zip(found, grid.axes.T, strict=True):
            for axes, norm in zip(radii, NORM, strict=True):
                _radius(axes, subject, norm)
            _accuracy(accuracy, subject)
            masked = subject.rows.loc[subject.rows["pruning"] == "random", "sparsity"].unique()
            for axes in (*radii, accuracy):
                sparsity_axis(axes, masked)
        titles = [subject.title for subject in found]
        grid.label(_ROWS, titles, below=r"mask sparsity $\alpha$ (%)")
        star = Line2D([], [], color=GREY, marker="*", markersize=7, linestyle="none", label=r"$\alpha^*$")
        thin = Line2D([], [], color=GREY, linewidth=0.6, alpha=0.7, label="thin: accuracy collapsed")
        legend_above(grid.figure, [*labelled(grid.figure), star, thin])
    return grid.figure


def _accuracies(subject: Subject, method: str) -> pd.DataFrame:
    return seed_values(subject, "random", "accuracy", method="clean" if method == _MEASURED else method)


def _whole(subject: Subject, method: str) -> pd.Series:
    """By sparsity: has no network collapsed? Predicted accuracies are held against those without masks."""
    if method == _MEASURED:
        return intact(subject, "random")
    values = _accuracies(subject, method)
    return values.ge((1 - COLLAPSE) * values.iloc[:, 0], axis=0).all()


def _radius(axes: Axes, subject: Subject, norm: str) -> None:
    shown = uncapped(subject, "random", method=_MEASURED, norm=norm)
    held = []
    for method, look in _LOOKS.items():
        curve = arithmetic(seed_values(subject, "random", "mean_radius", method=method, norm=norm))
        whole = _whole(subject, method)
        draw(axes, curve, look, shown, whole)
        visible = shown.reindex(curve.sparsity, fill_value=False).to_numpy(dtype=bool)
        held.append(curve.mean[visible])
        best = _best(curve, shown & whole)
        if best is not None:
            axes.plot(curve.sparsity[best], curve.mean[best], marker="*", markersize=7, linestyle="none",
                      color=look.colour, markeredgecolor="white", markeredgewidth=0.4, zorder=3)  # fmt: skip
    linear_limits(axes, held)


def _best(curve: Curve, kept: pd.Series) -> int | None:
    """Where the largest mean stands among the sparsities that count."""
    counts = kept.reindex(curve.sparsity, fill_value=False).to_numpy(dtype=bool) & np.isfinite(curve.mean)
    return int(np.where(counts, curve.mean, -np.inf).argmax()) if counts.any() else None


def _accuracy(axes: Axes, subject: Subject) -> None:
    for method, look in _LOOKS.items():
        curve = arithmetic(_accuracies(subject, method))
        whole = _whole(subject, method)
        draw(axes, curve, look, whole | True, whole)
    axes.set_ylim(0, 1.03)
