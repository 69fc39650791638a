"""Why robustness changes: margin and gradient at the nearest boundary, in ratio a first-order radius."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import (
    CONDITIONS,
    GREY,
    NORM,
    STYLE,
    WIDTH,
    condition_handles,
    draw,
    legend_above,
    log_limits,
    sparsity_axis,
    without_rows,
)
from paper_figures.curves import geometric, intact, present, seed_values, uncapped

_ROWS = {"margin": "mean margin", "gradient_norm": "mean gradient norm", "radius": "mean radius"}


def figure(table: pd.DataFrame) -> Figure:
    """Margin, gradient norm, and measured mean radius beside accuracy x margin / gradient; ReLU networks.

    Rows used: ``margin``, ``gradient_norm`` (nearest boundary; means over the correct examples), ``accuracy``
    and ``mean_radius`` (best). On the logarithmic axes a radius is the margin less the gradient norm.
    """
    relu = table[table["family"] == "mlp"]
    if relu.empty:
        return without_rows("The table holds no ReLU network.")
    conditions = present(relu, "pruning", tuple(CONDITIONS))
    with rc_context(fname=STYLE):
        drawn = Figure(figsize=(WIDTH, 6.4), layout="constrained")
        panels = drawn.subplots(len(_ROWS), len(NORM), sharex=True)
        for column, norm in enumerate(NORM):
            for row, quantity in enumerate(_ROWS):
                _panel(panels[row, column], relu, conditions, quantity=quantity, norm=norm)
            panels[0, column].set_title(f"{NORM[norm]} distance", loc="left", fontweight="bold")
            panels[-1, column].set_xlabel("sparsity (%)")
        for row, label in enumerate(_ROWS.values()):
            panels[row, 0].set_ylabel(label)
        drawn.align_ylabels(panels[:, 0])
        ratio = Line2D(
            [], [], color=GREY, linestyle="none", marker="x", label="accuracy × margin / gradient norm"
        )
        legend_above(drawn, [*condition_handles(conditions), ratio], columns=3)
    return drawn


def _panel(axes: Axes, relu: pd.DataFrame, conditions: list[str], *, quantity: str, norm: str) -> None:
    held = []
    for condition in conditions:

        def values(name: str, method: str, of: str = norm, condition: str = condition) -> pd.DataFrame:
            return seed_values(relu, family="mlp", pruning=condition, quantity=name, method=method, norm=of)

        whole = intact(relu, "mlp", condition)
        if quantity != "radius":
            curve = geometric(values(quantity, "nearest boundary"))
            held.append(draw(axes, curve, CONDITIONS[condition], whole | True, whole))
            continue
        shown = uncapped(relu, "mlp", condition, method="best", norm=norm)
        held.append(draw(axes, geometric(values("mean_radius", "best")), CONDITIONS[condition], shown, whole))
        ratio = geometric(
            values("accuracy", "clean", "")
            * values("margin", "nearest boundary")
            / values("gradient_norm", "nearest boundary")
        )
        keep = (whole & shown).reindex(ratio.sparsity, fill_value=False).to_numpy(dtype=bool)
        look = CONDITIONS[condition]
        axes.plot(ratio.sparsity[keep], ratio.mean[keep], color=look.colour, linestyle="none", marker="x")
        held.append(ratio.mean[keep])
    log_limits(axes, held)
    sparsity_axis(axes, relu["sparsity"][relu["sparsity"] < 1].unique())
