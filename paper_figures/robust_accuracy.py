"""One network's robust accuracy: what is certain, what attacks leave, and what no classifier can pass."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE
from paper_figures.layout import TWO_COLUMNS, labelled, legend_above
from paper_figures.looks import GREY, NORM, Look

_CURVES = {
    "ceiling": Look("ceiling of any classifier", GREY, (0, (2, 1))),
    "attacked": Look("best attack", "#0072B2", "solid"),
    "certified": Look("certified", "#009E73", (0, (5, 1.5))),
}
_OF_DENSE = {
    "attacked": Look("best attack, reference", "#000000", (0, (1.2, 1.2))),
    "certified": Look("certified, reference", "#888888", (0, (4, 1.2, 1.2, 1.2))),
}
# How far the axis reaches beyond the radius at which 95 % of the examples have been broken.
_BEYOND, _MOST = 1.3, 0.95


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure:
    """A panel for each norm; the truth lies between the certified curve and that of the best attack.

    ``table`` has the columns norm, source (certified, attacked, ceiling), radius and share, the share of the
    examples whose radius exceeds that one, rising in the radius. Rows whose column ``network``, if there is
    one, is "dense" are those of a reference, whose ceiling is not drawn, nor that of the network beside it.
    """
    norms = [norm for norm in ("linf", "l2") if (table["norm"] == norm).any()]
    with rc_context(fname=STYLE):
        wide = width >= TWO_COLUMNS
        size = (width, 2.4) if wide else (width, 2.2 * len(norms))
        drawn = Figure(figsize=size, layout="constrained")
        grid = drawn.subplots(1, len(norms)) if wide else drawn.subplots(len(norms), 1)
        for axes, norm in zip(np.atleast_1d(grid), norms, strict=True):
            _panel(axes, table[table["norm"] == norm])
            axes.set_title(f"{NORM[norm]} perturbations", loc="left", fontweight="bold")
        looks = [*_CURVES.values(), *_OF_DENSE.values()]
        legend_above(drawn, labelled(drawn, first=[look.label for look in looks]))
    return drawn


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    of_dense = (
        table["network"].eq("dense") if "network" in table else pd.Series(data=False, index=table.index)
    )
    dense = table[of_dense]
    looks = {source: _CURVES[source] for source in _OF_DENSE} if len(dense) else _CURVES
    shares = _drawn(axes, table[~of_dense], looks)
    if {"attacked", "certified"} <= set(shares):
        radii = np.union1d(*(shares[source]["radius"].to_numpy() for source in ("certified", "attacked")))
        low, high = (_at(shares[source], radii) for source in ("certified", "attacked"))
        axes.fill_between(radii, low, high, step="post", color="#F0F0F0", linewidth=0, zorder=0.5,
                          label="this network's truth" if len(dense) else "the truth is here")  # fmt: skip
    furthest = max(_furthest(part["attacked"]) for part in (shares, _drawn(axes, dense, _OF_DENSE)) if part)
    axes.set_xlim(0, _BEYOND * furthest or 1.0)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("radius of the perturbation")
    axes.set_ylabel("robust accuracy")


def _drawn(axes: Axes, table: pd.DataFrame, looks: dict[str, Look]) -> dict[str, pd.DataFrame]:
    """Draw one network's curves; returns those that there are."""
    found = {}
    for source, look in looks.items():
        rows = table[table["source"] == source].sort_values("radius")
        if len(rows):
            found[source] = rows
            axes.step(rows["radius"], rows["share"], where="post", color=look.colour, linestyle=look.line,
                      label=look.label)  # fmt: skip
    return found


def _furthest(attacked: pd.DataFrame) -> float:
    """The radius at which most of the examples have been broken."""
    start = float(attacked["share"].iloc[0])
    broken = attacked.loc[attacked["share"] <= (1 - _MOST) * start, "radius"]
    return float(broken.iloc[0] if len(broken) else attacked["radius"].iloc[-1])


def _at(rows: pd.DataFrame, radii: np.ndarray) -> np.ndarray:
    """The step curve's values at the radii."""
    place = np.searchsorted(rows["radius"].to_numpy(), radii, side="right") - 1
    return rows["share"].to_numpy()[np.maximum(place, 0)]
