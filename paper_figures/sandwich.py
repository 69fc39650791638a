"""The sandwich: the true mean radius of a ReLU network lies between its certificate and every attack."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import GREY, NORM, STYLE, WIDTH, Look, log_limits, sparsity_axis, without_rows
from paper_figures.curves import Curve, geometric, intact, seed_values

_LINES = {
    "universal ceiling": (Look("universal ceiling", GREY, (0, (2, 1))), ""),
    "fgs": (Look("smallest FGS step", "#E69F00", (0, (1.2, 1.2))), "s"),
    "deepfool": (Look("DeepFool, as published", "#D55E00", (0, (5, 1.2, 1.2, 1.2))), "D"),
    "best": (Look("best attack", "#0072B2", "solid"), "o"),
    "certificate": (Look("certificate", "#009E73", (0, (5, 1.5))), "^"),
}


def figure(table: pd.DataFrame) -> Figure:
    """Certificate, attacks and ceiling of the magnitude-pruned ReLU networks on one logarithmic axis.

    Rows used: ``mean_radius`` of those methods. The shaded gap holds the true mean radius; its width, best
    attack over certificate, is written at both ends.
    """
    pruned = table[
        (table["family"] == "mlp") & (table["pruning"] == "magnitude") & (table["quantity"] == "mean_radius")
    ]
    if pruned.empty:
        return without_rows("The table holds no ReLU network pruned by magnitude.")
    with rc_context(fname=STYLE):
        drawn = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        panels = drawn.subplots(1, len(NORM))
        whole = intact(table, "mlp", "magnitude")
        handles = {}
        for axes, norm in zip(panels, NORM, strict=True):
            _panel(axes, pruned, norm, whole)
            axes.set_title(f"{NORM[norm]} distance", loc="left", fontweight="bold")
            axes.set_xlabel("sparsity (%)")
            handles |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        panels[0].set_ylabel("mean radius")
        order = [look.label for look, _ in _LINES.values() if look.label in handles]
        drawn.legend([handles[text] for text in order], order, loc="outside upper center", ncols=5)
    return drawn


def _panel(axes: Axes, pruned: pd.DataFrame, norm: str, whole: pd.Series) -> None:
    curves: dict[str, Curve] = {}
    for method, (look, marker) in _LINES.items():
        curve = geometric(
            seed_values(
                pruned, family="mlp", pruning="magnitude", quantity="mean_radius", method=method, norm=norm
            )
        )
        if not len(curve.sparsity):
            continue
        curves[method] = curve
        axes.fill_between(curve.sparsity, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(
            curve.sparsity,
            curve.mean,
            color=look.colour,
            linestyle=look.line,
            marker=marker,
            markerfacecolor=look.colour if method in ("best", "certificate") else "white",
            label=look.label,
        )
    log_limits(axes, [curve.mean for curve in curves.values()])
    sparsity_axis(axes, pruned["sparsity"][pruned["sparsity"] < 1].unique())
    if "best" in curves and "certificate" in curves:
        _gap(axes, curves["best"], curves["certificate"], whole)


def _gap(axes: Axes, attack: Curve, certificate: Curve, whole: pd.Series) -> None:
    """Shade what lies between, and write its factor at the first sparsity and the last before collapse."""
    axes.fill_between(
        attack.sparsity, certificate.mean, attack.mean, color="#F0F0F0", linewidth=0, zorder=0.5
    )
    factor = attack.mean / certificate.mean
    kept = np.flatnonzero(np.isfinite(factor) & whole.reindex(attack.sparsity, fill_value=False).to_numpy())
    for index, align in ((kept[:1], "left"), (kept[1:][-1:], "right")):
        for k in index:
            middle = float(np.sqrt(attack.mean[k] * certificate.mean[k]))
            axes.text(
                float(attack.sparsity[k]), middle, f"×{factor[k]:.3g}", ha=align, va="center", fontsize=7
            )
