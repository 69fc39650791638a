"""Clean accuracy against sparsity, which every robustness must be read beside."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import (
    CONDITIONS,
    FAMILIES,
    GREY,
    STYLE,
    WIDTH,
    condition_handles,
    draw,
    legend_above,
    sparsity_axis,
    without_rows,
)
from paper_figures.curves import COLLAPSE, arithmetic, present, seed_values


def figure(table: pd.DataFrame) -> Figure:
    """Clean test accuracy by family and condition, with the level below which other figures fade.

    Rows used: ``accuracy``.
    """
    families = present(table, "family", tuple(FAMILIES))
    if not families:
        return without_rows("The table holds no network.")
    with rc_context(fname=STYLE):
        drawn = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        panels = drawn.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for axes, family in zip(panels, families, strict=True):
            for condition in present(table, "pruning", tuple(CONDITIONS)):
                curve = arithmetic(
                    seed_values(
                        table, family=family, pruning=condition, quantity="accuracy", method="clean", norm=""
                    )
                )
                everywhere = pd.Series(data=True, index=curve.sparsity)
                draw(axes, curve, CONDITIONS[condition], everywhere, everywhere)
                if condition == "dense":
                    level = (1 - COLLAPSE) * curve.mean
                    axes.plot(curve.sparsity, level, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            of_family = table[(table["family"] == family) & (table["sparsity"] < 1)]
            sparsity_axis(axes, of_family["sparsity"].unique())
            axes.set_title(FAMILIES[family], loc="left", fontweight="bold")
            axes.set_xlabel("sparsity (%)")
            axes.set_ylim(0, 1.03)
        panels[0].set_ylabel("clean accuracy")
        collapse = Line2D(
            [], [], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), label="90 % of the dense accuracy"
        )
        handles = condition_handles(present(table, "pruning", tuple(CONDITIONS)))[:-1]
        legend_above(drawn, [*handles, collapse], columns=3)
    return drawn
