"""The random-mask theorem: upper bounds on the expected Lipschitz constant, beside Monte Carlo over masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, log_limits, sparsity_axis
from paper_figures.curves import geometric
from paper_figures.layout import TWO_COLUMNS, by_norm, labelled, legend_above, panels
from paper_figures.looks import Look
from paper_figures.subjects import Subject, seed_values, subjects

RUNGS = {
    "F": Look("F: Frobenius norms", "#D55E00", (0, (5, 1.5))),
    "M": Look("M: largest absolute sums", "#D55E00", (0, (1.2, 1.2))),
    "P1": Look("P1: expected path norm", "#0072B2", "solid"),
    "P2": Look("P2: second moments", "#009E73", (0, (5, 1.2, 1.2, 1.2))),
    "B": Look("B: matrix Bernstein", "#CC79A7", (0, (3, 1))),
    "S": Look("S: half cuts", "#56B4E9", (0, (4, 1, 1, 1))),
}


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Every rung of the ladder at every sparsity, the best one marked, and the Monte Carlo mean below.

    Rows used: ``expected_lipschitz`` and ``standard_error``. Lines are geometric means over seeds with their
    95 % interval; the Monte Carlo points carry five times their mean standard error over masks.
    """
    found = [s for s in subjects(table) if (s.rows["quantity"] == "expected_lipschitz").any()]
    if not found:
        return None
    columns = by_norm(found)
    with rc_context(fname=STYLE):
        grid = panels(1, len(columns), width=width, height=2.4, together=2)
        for axes, (subject, norm, _) in zip(grid.axes[0], columns, strict=True):
            _panel(axes, subject, norm)
        grid.label(
            [r"$E_M[L]$ and its bounds"],
            [title for *_, title in columns],
            below=r"mask sparsity $\alpha$ (%)",
        )
        legend_above(grid.figure, labelled(grid.figure, first=[look.label for look in RUNGS.values()]))
    return grid.figure


def _panel(axes: Axes, subject: Subject, norm: str) -> None:
    def values(method: str, quantity: str = "expected_lipschitz") -> pd.DataFrame:
        return seed_values(subject, "random", quantity, method=method, norm=norm)

    best = geometric(values("best"))
    axes.plot(best.sparsity, best.mean, color="#BBBBBB", linewidth=5, label="the smallest of them")
    held = [best.mean]
    for name, look in RUNGS.items():
        curve = geometric(values(name))
        if not len(curve.sparsity):
            continue
        axes.fill_between(curve.sparsity, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(curve.sparsity, curve.mean, color=look.colour, linestyle=look.line, label=look.label)
        held.append(curve.mean)
    sampled = geometric(values("Monte Carlo"))
    error = 5 * values("Monte Carlo", "standard_error").mean().reindex(sampled.sparsity).to_numpy()
    axes.errorbar(
        sampled.sparsity,
        sampled.mean,
        yerr=np.minimum(error, 0.9 * sampled.mean),
        color="black",
        marker="o",
        linewidth=0.8,
        elinewidth=0.8,
        capsize=1.5,
        label=r"Monte Carlo ± 5 s. e.",
    )
    log_limits(axes, [*held, sampled.mean])
    sparsity_axis(axes, sampled.sparsity if len(sampled.sparsity) else best.sparsity)
