"""Why robustness changes: margin and gradient at the nearest boundary, in ratio a first-order radius."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, log_limits, say_not_measured, sparsity_axis
from paper_figures.curves import geometric, intact, uncapped
from paper_figures.layout import TWO_COLUMNS, by_norm, condition_handles, legend_above, panels
from paper_figures.looks import GREY, look_of
from paper_figures.subjects import Subject, abscissa, is_measured, relu, seed_values, subjects

_ROWS = {"margin": "mean margin", "gradient_norm": "mean gradient norm", "radius": "mean radius"}


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Margin, gradient norm, and measured mean radius beside accuracy x margin / gradient; ReLU networks.

    Rows used: ``margin``, ``gradient_norm`` (nearest boundary; means over the correct examples), ``accuracy``
    and ``mean_radius`` (best). On the logarithmic axes a radius is the margin less the gradient norm.
    """
    found = [s for s in relu(subjects(table)) if (s.rows["quantity"] == "gradient_norm").any()]
    if not found:
        return None
    columns = by_norm(found)
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(columns), width=width, height=1.75, together=2)
        for (subject, norm, _), below in zip(columns, grid.axes.T, strict=True):
            for axes, quantity in zip(below, _ROWS, strict=True):
                _panel(axes, subject, quantity=quantity, norm=norm)
        grid.label(list(_ROWS.values()), [title for *_, title in columns], below=abscissa(table))
        ratio = Line2D([], [], color=GREY, linestyle="none", marker="x", label="accuracy·margin/gradient")
        legend_above(grid.figure, [*condition_handles(found), ratio])
    return grid.figure


def _panel(axes: Axes, subject: Subject, *, quantity: str, norm: str) -> None:
    if quantity == "radius" and not is_measured(subject, "mean_radius", method="best", norm=norm):
        say_not_measured(axes, subject.levels)
        return
    held = []
    for condition in subject.conditions:

        def values(name: str, method: str, of: str = norm, condition: str = condition) -> pd.DataFrame:
            return seed_values(subject, condition, name, method=method, norm=of)

        look = look_of(condition)
        whole = intact(subject, condition)
        if quantity != "radius":
            held.append(
                draw(axes, geometric(values(quantity, "nearest boundary")), look, whole | True, whole)
            )
            continue
        shown = uncapped(subject, condition, method="best", norm=norm)
        held.append(draw(axes, geometric(values("mean_radius", "best")), look, shown, whole))
        ratio = geometric(
            values("accuracy", "clean", "")
            * values("margin", "nearest boundary")
            / values("gradient_norm", "nearest boundary")
        )
        keep = (whole & shown).reindex(ratio.sparsity, fill_value=False).to_numpy(dtype=bool)
        axes.plot(ratio.sparsity[keep], ratio.mean[keep], color=look.colour, linestyle="none", marker="x")
        held.append(ratio.mean[keep])
    log_limits(axes, held)
    sparsity_axis(axes, subject.levels)
