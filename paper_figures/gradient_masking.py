"""Gradient masking: what weak attacks say of sparsity, and what the strongest attack says."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.axes import STYLE, draw, halfway, linear_limits, sparsity_axis
from paper_figures.curves import (
    Curve,
    arithmetic,
    intact,
    most_telling,
    ratio_to_dense,
    uncapped,
    uncapped_ratio,
)
from paper_figures.layout import TWO_COLUMNS, by_norm, condition_handles, legend_above, panels
from paper_figures.looks import GREY, STRONG_LOOK, WEAK, WEAK_LOOK, look_of
from paper_figures.subjects import Subject, abscissa, relu, seed_values, subjects

# Verdicts differ if they lie on both sides of 1 and this far apart.
_APART = 0.01


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None:
    """Mean radius over the equally trained dense networks' by weak and strongest attack; ReLU networks.

    Rows used: ``mean_radius`` (fgs in l_inf, deepfool in l_2, best). Above, one condition; shaded where one
    attack sees a gain and the other a loss; a star at the best sparsity before collapse. Below, for every
    condition, by how much the weak attack's mean radius exceeds the strongest's.
    """
    condition, found = most_telling(relu(subjects(table)))
    if not found:
        return None
    columns = by_norm(found)
    with rc_context(fname=STYLE):
        grid = panels(2, len(columns), width=width, height=1.75, together=2)
        for (subject, norm, _), (above, below) in zip(columns, grid.axes.T, strict=True):
            _against_dense(above, subject, condition, norm)
            _excess(below, subject, norm)
            for axes in (above, below):
                sparsity_axis(axes, subject.levels)
        rows = [f"{condition} / dense", "overstatement (%)"]
        grid.label(rows, [title for *_, title in columns], below=abscissa(table))
        legend_above(grid.figure, [*_handles(), *condition_handles(found)])
    return grid.figure


def _against_dense(axes: Axes, subject: Subject, condition: str, norm: str) -> None:
    whole = intact(subject, condition)
    curves, held = [], [np.ones(1)]
    for method, look in ((WEAK[norm][0], WEAK_LOOK), ("best", STRONG_LOOK)):
        curve = arithmetic(ratio_to_dense(subject, condition, "mean_radius", method=method, norm=norm))
        shown = uncapped_ratio(subject, condition, method=method, norm=norm)
        held.append(draw(axes, curve, look, shown, whole))
        kept = (shown & whole).reindex(curve.sparsity, fill_value=False).to_numpy(dtype=bool)
        values = np.where(kept & np.isfinite(curve.mean), curve.mean, -np.inf)
        if np.isfinite(values).any():
            best = int(values.argmax())
            axes.plot(curve.sparsity[best], curve.mean[best], marker="*", markersize=7, linestyle="none",
                      color=look.colour, markeredgecolor="white", markeredgewidth=0.4, zorder=3)  # fmt: skip
        curves.append((curve, kept))
    axes.axhline(1, color=GREY, linewidth=0.8)
    _shade_disagreement(axes, *curves)
    linear_limits(axes, held, zero=False)


def _shade_disagreement(axes: Axes, weak: tuple[Curve, np.ndarray], strong: tuple[Curve, np.ndarray]) -> None:
    """Shade between both curves at the sparsities where one lies above 1 and the other below."""
    (one, kept), (other, also) = weak, strong
    shared = np.isin(one.sparsity, other.sparsity)
    if not np.array_equal(one.sparsity[shared], other.sparsity):
        return
    first, second = one.mean[shared], other.mean
    differ = ((first - 1) * (second - 1) < 0) & (np.abs(first - second) > _APART) & kept[shared] & also
    ends = halfway(other.sparsity)
    axes.fill_between(ends.ravel(), 0, 1, where=np.repeat(differ, 2), color="#EEEEEE", linewidth=0,
                      zorder=0.5, transform=axes.get_xaxis_transform(), gid="disagreement")  # fmt: skip


def _excess(axes: Axes, subject: Subject, norm: str) -> None:
    held = [np.zeros(1)]
    for condition in subject.conditions:
        weak, best = (
            seed_values(subject, condition, "mean_radius", method=method, norm=norm)
            for method in (WEAK[norm][0], "best")
        )
        curve = arithmetic(100 * (weak / best.where(best > 0) - 1))
        shown = uncapped(subject, condition, method=WEAK[norm][0], norm=norm)
        held.append(draw(axes, curve, look_of(condition), shown, intact(subject, condition)))
    linear_limits(axes, held, zero=False)


def _handles() -> list[Line2D]:
    attacks = [
        Line2D([], [], color=look.colour, linestyle=look.line, label=f"{look.label} (above)")
        for look in (WEAK_LOOK, STRONG_LOOK)
    ]
    star = Line2D([], [], color=GREY, marker="*", markersize=7, linestyle="none", label="best sparsity")
    shade = Line2D([], [], color="#DDDDDD", linewidth=5, label="signs differ")
    return [*attacks, star, shade]
