"""The sandwich: the true mean radius of a ReLU network lies between its certificate and every attack."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, draw, log_limits, sparsity_axis
from paper_figures.curves import Curve, geometric, intact, uncapped
from paper_figures.layout import TWO_COLUMNS, by_norm, labelled, legend_above, panels
from paper_figures.looks import GREY, Look
from paper_figures.subjects import Subject, abscissa, relu, seed_values, subjects

_LINES = {
    "universal ceiling": (Look("universal ceiling", GREY, (0, (2, 1))), ""),
    "fgs": (Look("smallest FGS step", "#E69F00", (0, (1.2, 1.2))), "s"),
    "deepfool": (Look("DeepFool, as published", "#D55E00", (0, (5, 1.2, 1.2, 1.2))), "D"),
    "best": (Look("best attack", "#0072B2", "solid"), "o"),
    "certificate": (Look("certificate", "#009E73", (0, (5, 1.5))), "^"),
}
_ATTACKS = ("fgs", "deepfool", "best")


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Certificate, attacks and ceiling of the magnitude-pruned ReLU networks on one logarithmic axis.

    Rows used: ``mean_radius`` of those methods. The shaded gap holds the true mean radius; its width, best
    attack over certificate, is written at both ends.
    """
    found = [
        subject
        for subject in relu(subjects(table))
        if seed_values(subject, "magnitude", "mean_radius", method="certificate", norm="l2").size
    ]
    if not found:
        return None
    columns = by_norm(found)
    with rc_context(fname=STYLE):
        grid = panels(1, len(columns), width=width, height=2.1, together=2)
        for axes, (subject, norm, _) in zip(grid.axes[0], columns, strict=True):
            _panel(axes, subject, norm)
        grid.label(["mean radius"], [title for *_, title in columns], below=abscissa(table))
        legend_above(grid.figure, labelled(grid.figure, first=[look.label for look, _ in _LINES.values()]))
    return grid.figure


def _panel(axes: Axes, subject: Subject, norm: str) -> None:
    curves: dict[str, Curve] = {}
    held: list[np.ndarray] = []
    whole = intact(subject, "magnitude")
    for method, (look, marker) in _LINES.items():
        curve = geometric(seed_values(subject, "magnitude", "mean_radius", method=method, norm=norm))
        if not np.isfinite(curve.mean).any():
            continue
        curves[method] = curve
        shown = whole | True
        if method in _ATTACKS:
            shown = uncapped(subject, "magnitude", method=method, norm=norm)
        hollow = method in ("fgs", "deepfool")
        held.append(draw(axes, curve, look, shown, whole, marker=marker, hollow=hollow))
    log_limits(axes, held)
    sparsity_axis(axes, subject.levels)
    if "best" in curves and "certificate" in curves:
        _gap(axes, curves["best"], curves["certificate"], whole)


def _gap(axes: Axes, attack: Curve, certificate: Curve, whole: pd.Series) -> None:
    """Shade what lies between, and write its factor at the first sparsity and the last before collapse."""
    sound = whole.reindex(attack.sparsity, fill_value=False).to_numpy(dtype=bool)
    inside = {"where": sound, "color": "#F0F0F0", "linewidth": 0, "zorder": 0.5}
    axes.fill_between(attack.sparsity, certificate.mean, attack.mean, **inside)
    factor = attack.mean / certificate.mean
    kept = np.flatnonzero(np.isfinite(factor) & sound)
    for index, align in ((kept[:1], "left"), (kept[1:][-1:], "right")):
        for k in index:
            middle = float(np.sqrt(attack.mean[k] * certificate.mean[k]))
            axes.text(
                float(attack.sparsity[k]), middle, f"×{factor[k]:.3g}", ha=align, va="center", fontsize=7
            )
