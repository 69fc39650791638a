"""Activation sparsity: robustness against the share of zero inputs of the last layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from paper_figures.axes import STYLE, draw, linear_limits
from paper_figures.curves import Curve, arithmetic, intact, uncapped
from paper_figures.layout import TWO_COLUMNS, condition_handles, legend_above, panels
from paper_figures.looks import look_of
from paper_figures.subjects import Subject, penalised, seed_values

_ROWS = (
    ("mean_radius", "l2", "best", r"mean radius $R_2$"),
    ("mean_radius", "linf", "best", r"mean radius $R_\infty$"),
    ("fgs_accuracy", "linf", "fgs in the box", r"$r_\infty(\varepsilon)$, clipped"),
    ("accuracy", "", "clean", "clean accuracy"),
)
_CONDITION = "activation"


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Mean radius, FGS accuracy and clean accuracy against the achieved share of zero activations.

    Rows used: ``mean_radius`` (best), ``fgs_accuracy`` (fgs in the box), ``accuracy``, of conditions
    ``activation`` and ``dense``, and the column ``achieved_sparsity``. A dense network stands at the share of
    the networks that were trained equally long with the L1 term.
    """
    found = [subject for subject in penalised(table, _CONDITION) if np.isfinite(_shares(subject)).any()]
    if not found:
        return None
    with rc_context(fname=STYLE):
        grid = panels(len(_ROWS), len(found), width=width, height=1.75)
        for subject, below in zip(found, grid.axes.T, strict=True):
            for axes, (quantity, norm, method, _) in zip(below, _ROWS, strict=True):
                _panel(axes, subject, quantity=quantity, norm=norm, method=method)
        titles = [subject.title for subject in found]
        grid.label([row[-1] for row in _ROWS], titles, below="zero activations (%)")
        legend_above(grid.figure, condition_handles(found))
    return grid.figure


def _shares(subject: Subject) -> pd.Series:
    """Mean achieved share over the seeds, by level."""
    own = subject.rows[(subject.rows["pruning"] == _CONDITION) & (subject.rows["quantity"] == "accuracy")]
    return own.groupby("sparsity")["achieved_sparsity"].mean()


def _panel(axes: Axes, subject: Subject, *, quantity: str, norm: str, method: str) -> None:
    held = []
    share = _shares(subject)
    for condition in subject.conditions:
        curve = arithmetic(seed_values(subject, condition, quantity, method=method, norm=norm))
        whole = intact(subject, condition)
        shown = whole | True
        if quantity == "mean_radius":
            shown = uncapped(subject, condition, method=method, norm=norm)
        moved = [_at(series, share) for series in (shown, whole)]
        held.append(draw(axes, _moved(curve, share), look_of(condition), *moved))
    if quantity == "accuracy":
        axes.set_ylim(0, 1.03)
    else:
        linear_limits(axes, held)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def _moved(curve: Curve, share: pd.Series) -> Curve:
    """The curve over the shares instead of the levels, from the smallest share on."""
    place = share.reindex(curve.sparsity).to_numpy()
    order = np.argsort(place, kind="stable")
    return Curve(place[order], curve.mean[order], curve.low[order], curve.high[order])


def _at(flags: pd.Series, share: pd.Series) -> pd.Series:
    moved = flags.groupby(share.reindex(flags.index).to_numpy()).all()
    return moved
