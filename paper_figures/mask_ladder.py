"""The random-mask theorem: upper bounds on the expected Lipschitz constant, beside Monte Carlo over masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, WIDTH, Look, log_limits, sparsity_axis, without_rows
from paper_figures.curves import geometric, seed_values

_RUNGS = {
    "F": Look("F: Frobenius norms (the paper's)", "#D55E00", (0, (5, 1.5))),
    "M": Look("M: largest absolute sums (the paper's)", "#D55E00", (0, (1.2, 1.2))),
    "P1": Look("P1: expected path norm", "#0072B2", "solid"),
    "P2": Look("P2: second moments", "#009E73", (0, (5, 1.2, 1.2, 1.2))),
    "B": Look("B: matrix Bernstein", "#CC79A7", (0, (3, 1))),
    "S": Look("S: half cuts", "#56B4E9", (0, (4, 1, 1, 1))),
}
_PANELS = {
    "l2": r"dual norm $q = 2$ (attacks in $\ell_2$)",
    "linf": r"dual norm $q = 1$ (attacks in $\ell_\infty$)",
}


def figure(table: pd.DataFrame) -> Figure:
    """Every rung of the ladder at every sparsity, the best one marked, and the Monte Carlo mean below.

    Rows used: ``expected_lipschitz`` and ``standard_error``. Lines are geometric means over seeds with their
    95 % interval; the Monte Carlo points carry five times their mean standard error over masks.
    """
    ladder = table[table["quantity"].isin(["expected_lipschitz", "standard_error"]) & (table["sparsity"] < 1)]
    if ladder.empty:
        return without_rows("The table holds no rows about random masks.")
    with rc_context(fname=STYLE):
        drawn = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        panels = drawn.subplots(1, len(_PANELS))
        for axes, norm in zip(panels, _PANELS, strict=True):
            _panel(axes, ladder, norm)
        panels[0].set_ylabel(r"$E_M[L]$ and its bounds")
        handles = {}
        for axes in panels:
            handles |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        labels = [look.label for look in _RUNGS.values() if look.label in handles]
        labels += [text for text in handles if text not in labels]
        drawn.legend([handles[text] for text in labels], labels, loc="outside upper center", ncols=3)
    return drawn


def _panel(axes: Axes, ladder: pd.DataFrame, norm: str) -> None:
    def values(method: str, quantity: str = "expected_lipschitz") -> pd.DataFrame:
        return seed_values(
            ladder, family="mlp", pruning="random", quantity=quantity, method=method, norm=norm
        )

    best = geometric(values("best"))
    axes.plot(best.sparsity, best.mean, color="#BBBBBB", linewidth=5, label="best: the smallest of them")
    held = [best.mean]
    for name, look in _RUNGS.items():
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
        label=r"Monte Carlo $\pm$ 5 standard errors",
    )
    log_limits(axes, [*held, sampled.mean])
    sparsity_axis(axes, sampled.sparsity if len(sampled.sparsity) else best.sparsity)
    axes.set_title(_PANELS[norm], loc="left", fontweight="bold")
    axes.set_xlabel(r"sparsity of the masks $\alpha$ (%)")
