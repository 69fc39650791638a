"""One network pruned further without retraining: accuracy and mean radii, measured and predicted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, linear_limits, sparsity_axis
from paper_figures.layout import TWO_COLUMNS, labelled, legend_above
from paper_figures.looks import CONDITIONS

_PANELS = (
    ("accuracy", "", "clean", "clean accuracy"),
    ("mean_radius", "linf", "best", r"mean radius $R_\infty$"),
    ("mean_radius", "l2", "best", r"mean radius $R_2$"),
)
_LABELS = {"one-shot": "smallest removed, measured", "random": "random removed, measured"}
_PREDICTED = "moment propagation"


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure:
    """Accuracy and mean radius in either norm against the share of the remaining weights that is removed.

    Rows used: ``accuracy`` (clean) and ``mean_radius`` (best) of ``one-shot`` and ``random``, the band of the
    latter from the smallest to the largest of its masks; the same by moment propagation.
    """
    with rc_context(fname=STYLE):
        wide = width >= TWO_COLUMNS
        size = (width, 2.2) if wide else (width, 1.9 * len(_PANELS))
        drawn = Figure(figsize=size, layout="constrained")
        grid = drawn.subplots(1, len(_PANELS)) if wide else drawn.subplots(len(_PANELS), 1)
        for axes, (quantity, norm, method, title) in zip(grid, _PANELS, strict=True):
            rows = table[(table["quantity"] == quantity) & (table["norm"] == norm)]
            _panel(axes, rows, method)
            axes.set_title(title, loc="left", fontweight="bold")
        drawn.supxlabel("share of the remaining weights that is removed (%)", fontsize=8)
        legend_above(drawn, labelled(drawn))
    return drawn


def _panel(axes: Axes, rows: pd.DataFrame, method: str) -> None:
    held = []
    measured = rows[rows["method"] == method]
    start = measured[measured["sparsity"] == 0]
    for condition, label in _LABELS.items():
        look = CONDITIONS[condition]
        own = pd.concat([start, measured[measured["pruning"] == condition]]).drop_duplicates(
            ["sparsity", "seed"]
        )
        levels = own.groupby("sparsity")["value"].agg(["mean", "min", "max"])
        at = levels.index.to_numpy(dtype=float)
        axes.fill_between(at, levels["min"], levels["max"], color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(at, levels["mean"], color=look.colour, linestyle=look.line, marker="o", label=label)
        held.append(levels["max"].to_numpy(dtype=float))
    predicted = rows[rows["method"] == _PREDICTED].sort_values("sparsity")
    if len(predicted):
        axes.plot(predicted["sparsity"], predicted["value"], color=CONDITIONS["random"].colour,
                  linestyle="none", marker="x", markersize=5, label="random removed, predicted")  # fmt: skip
        held.append(predicted["value"].to_numpy(dtype=float))
    sparsity_axis(axes, np.unique(measured["sparsity"].to_numpy(dtype=float)))
    linear_limits(axes, held)
