"""Activation sparsity: robustness against the share of zero inputs of the last layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, linear_limits, sparsity_axis
from paper_figures.curves import Curve, arithmetic, intact, ratio_to_dense, uncapped_ratio
from paper_figures.layout import TWO_COLUMNS, condition_handles, legend_above, panels
from paper_figures.looks import GREY, STRONG_LOOK, WEAK, WEAK_LOOK, Look, look_of
from paper_figures.subjects import Subject, penalised, seed_values

_ROWS = {
    "l2": r"$R_2$, sparse / dense",
    "linf": r"$R_\infty$, sparse / dense",
    "fgs_accuracy": r"$r_\infty(\varepsilon)$, clipped",
    "accuracy": "clean accuracy",
}
_METHODS = {"fgs_accuracy": ("fgs in the box", "linf"), "accuracy": ("clean", "")}
_CONDITION = "activation"


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Mean radius over the equally trained dense networks', FGS accuracy and clean accuracy.

    All against the achieved share of zero activations. Rows used: ``mean_radius`` (fgs in l_inf, deepfool
    in l_2, best), ``fgs_accuracy`` (fgs in the box), ``accuracy``, of conditions ``activation`` and
    ``dense``, and the column ``achieved_sparsity``. A dense network stands at the share of the networks
    that were trained equally long with the L1 term.
    """
    found = [subject for subject in penalised(table, _CONDITION) if np.isfinite(_shares(subject)).any()]
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(found), width=width, height=1.75)
        for subject, below in zip(found, grid.axes.T, strict=True):
            for axes, row in zip(below, _ROWS, strict=True):
                (_radius if row in WEAK else _accuracy)(axes, subject, row)
                sparsity_axis(axes, _shares(subject).to_numpy())
        grid.label(list(_ROWS.values()), [subject.title for subject in found], below="zero activations (%)")
        attacks = [
            Line2D([], [], color=look.colour, linestyle=look.line, label=f"{look.label} (radii)")
            for look in (WEAK_LOOK, STRONG_LOOK)
        ]
        legend_above(grid.figure, [*attacks, *condition_handles(found)])
    return grid.figure


def _shares(subject: Subject) -> pd.Series:
    """Mean achieved share over the seeds, by level."""
    own = subject.rows[(subject.rows["pruning"] == _CONDITION) & (subject.rows["quantity"] == "accuracy")]
    return own.groupby("sparsity")["achieved_sparsity"].mean()


def _radius(axes: Axes, subject: Subject, norm: str) -> None:
    """What a weak and the strongest attack say of the penalised networks, over the dense ones."""
    held = [np.ones(1)]
    for method, look in ((WEAK[norm][0], WEAK_LOOK), ("best", STRONG_LOOK)):
        curve = arithmetic(ratio_to_dense(subject, _CONDITION, "mean_radius", method=method, norm=norm))
        shown = uncapped_ratio(subject, _CONDITION, method=method, norm=norm)
        held.append(_drawn(axes, subject, curve, look, shown, intact(subject, _CONDITION)))
    axes.axhline(1, color=GREY, linewidth=0.8)
    linear_limits(axes, held, zero=False)


def _accuracy(axes: Axes, subject: Subject, quantity: str) -> None:
    held, (method, norm) = [], _METHODS[quantity]
    for condition in subject.conditions:
        curve = arithmetic(seed_values(subject, condition, quantity, method=method, norm=norm))
        whole = intact(subject, condition)
        held.append(_drawn(axes, subject, curve, look_of(condition), whole | True, whole))
    if quantity == "accuracy":
        axes.set_ylim(0, 1.03)
    else:
        linear_limits(axes, held)


def _drawn(
    axes: Axes, subject: Subject, curve: Curve, look: Look, shown: pd.Series, whole: pd.Series
) -> np.ndarray:
    """The curve over the shares instead of the levels, from the smallest share on."""
    share = _shares(subject)
    place = share.reindex(curve.sparsity).to_numpy()
    order = np.argsort(place, kind="stable")
    moved = Curve(place[order], curve.mean[order], curve.low[order], curve.high[order])
    flags = [s.groupby(share.reindex(s.index).to_numpy()).all() for s in (shown, whole)]
    return draw(axes, moved, look, *flags)
