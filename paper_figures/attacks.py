"""What every attack says of the pruned networks: the same curve seen through instruments of any strength."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, draw, linear_limits, log_limits, sparsity_axis
from paper_figures.curves import arithmetic, intact, most_telling, uncapped
from paper_figures.layout import TWO_COLUMNS, by_norm, labelled, legend_above, panels
from paper_figures.looks import STRONG_LOOK, WEAK_LOOK, Look, look_of
from paper_figures.subjects import Subject, abscissa, relu, seed_values, subjects

# In the order of the legend.
_LOOKS = {
    "fgs": Look("FGS, smallest step", WEAK_LOOK.colour, (0, (4, 1.2))),
    "rfgs": Look("rFGS, smallest step", "#D55E00", (0, (1.2, 1.2))),
    "deepfool": Look("DeepFool", "#009E73", (0, (5, 1.2, 1.2, 1.2))),
    "pgd": Look("PGD", "#882255", (0, (2, 1))),
    "ddn": Look("DDN", "#56B4E9", (0, (7, 1.2))),
    "fmn": Look("FMN", "#CC79A7", (0, (3, 1))),
    "fmn-init": Look("FMN from other examples", "#661100", (0, (3, 1, 1.2, 1))),
    "cw": Look("C&W", "#999933", (0, (5, 1, 1.2, 1, 1.2, 1))),
    "best": STRONG_LOOK,
}
_LEAST = 0.1  # percent above the strongest attack: what is nearer lies at the edge
# With fewer attacks the figure of gradient masking shows them all.
_FEWEST = 3


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Mean radius by every attack, one way of pruning; dashed the dense networks by the strongest attack.

    Below, by how much each attack's exceeds the strongest's, on a logarithmic axis.
    Rows used: ``mean_radius`` of the attacks and of ``best``; ReLU networks attacked in three ways or more.
    """
    condition, found = most_telling(relu(subjects(table)))
    found = [s for s in found if any(len(_methods(s, condition, norm)) > _FEWEST for norm in ("l2", "linf"))]
    if not found:
        return None
    columns = by_norm(found)
    with rc_context(fname=STYLE):
        grid = panels(2, len(columns), width=width, height=1.9, together=2)
        for (subject, norm, _), (above, below) in zip(columns, grid.axes.T, strict=True):
            _radii(above, subject, condition, norm)
            _excess(below, subject, condition, norm)
            for axes in (above, below):
                sparsity_axis(axes, subject.levels)
        rows = [f"mean radius,\n{look_of(condition).label}", "above the strongest (%)"]
        grid.label(rows, [title for *_, title in columns], below=abscissa(table))
        dense = look_of("dense").label
        legend_above(grid.figure, labelled(grid.figure, first=[dense, *(x.label for x in _LOOKS.values())]))
    return grid.figure


def _methods(subject: Subject, condition: str, norm: str) -> list[str]:
    """The attacks of this norm, and ``best``."""
    return [
        method
        for method in _LOOKS
        if len(seed_values(subject, condition, "mean_radius", method=method, norm=norm))
    ]


def _radii(axes: Axes, subject: Subject, condition: str, norm: str) -> None:
    shown = [("dense", "best", look_of("dense"))]
    shown += [(condition, method, _LOOKS[method]) for method in _methods(subject, condition, norm)]
    held = []
    for name, method, look in shown:
        curve = arithmetic(seed_values(subject, name, "mean_radius", method=method, norm=norm))
        near = uncapped(subject, name, method=method, norm=norm)
        held.append(draw(axes, curve, look, near, intact(subject, name)))
    linear_limits(axes, held)


def _excess(axes: Axes, subject: Subject, condition: str, norm: str) -> None:
    held = [np.array([_LEAST])]
    best = seed_values(subject, condition, "mean_radius", method="best", norm=norm)
    for method in _methods(subject, condition, norm):
        if method != "best":
            values = seed_values(subject, condition, "mean_radius", method=method, norm=norm)
            curve = arithmetic(100 * (values / best.where(best > 0) - 1))
            near = uncapped(subject, condition, method=method, norm=norm)
            strong = draw(axes, curve, _LOOKS[method], near, intact(subject, condition))
            held.append(np.maximum(strong, _LEAST))
    log_limits(axes, held)
