"""What all figures share: the sparsity axis, curves that fade, limits that what has collapsed cannot move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from paper_figures.curves import Curve
from paper_figures.looks import GREY, Look

STYLE = Path(__file__).with_name("style.mplstyle")
# In the order in which ticks are tried after the ends; one is left out where it would touch another.
_TICKS = (0.9, 0.99, 0.5, 0.8, 0.95, 0.999, 0.98, 0.995, 0.7, 0.2)
_FEW = 4  # below this the experiment's own sparsities are ticks too
_CHARACTER, _GAP, _LABELS = 0.055, 0.08, 0.6  # inches: of a tick label, between two, left of a panel
# A sparsity of 1, of activations that are all 0, stands where one remaining weight in so many would.
_LEAST = 1e-6
_SHORT = 300.0  # a logarithmic axis spanning less than this factor is labelled in plain decimals


def sparsity_axis(axes: Axes, sparsities: np.ndarray) -> None:
    """Sparsity in percent, spaced as the logarithm of the remaining weights: 90 to 99 % spread out."""
    axes.set_xscale("function", functions=(_spread, _gather))
    first, last = float(sparsities.min()), float(sparsities.max())
    length = float(_spread(last) - _spread(first)) or 1.0
    ticks = [first, last]
    for tick in (*_TICKS, *sparsities):
        wanted = tick in _TICKS or len(ticks) < _FEW
        if wanted and first < tick < last and all(_apart(axes, tick, other, length) for other in ticks):
            ticks.append(float(tick))
    ticks = sorted(set(ticks))
    axes.set_xticks(ticks, [_percent(tick) for tick in ticks])
    _mark(axes, np.unique(sparsities))
    margin = 0.03 * length
    axes.set_xlim(float(_gather(_spread(first) - margin)), float(_gather(_spread(last) + margin)))


def _mark(axes: Axes, levels: np.ndarray) -> None:
    """Small ticks where something was measured: one line, as every tick of an axis takes a millisecond."""
    along = axes.get_xaxis_transform()  # levels across, the axis at 0
    ticks = Line2D(levels, np.zeros_like(levels), transform=along, linestyle="none")
    ticks.set(
        marker=TICKDOWN,
        markersize=rcParams["xtick.minor.size"],
        markeredgewidth=rcParams["xtick.minor.width"],
        color=rcParams["xtick.color"],
    )
    axes.figure.add_artist(ticks)


def halfway(sparsities: np.ndarray) -> np.ndarray:
    """Of n sparsities, (n, 2): from where to where each reaches on the axis, half way to its neighbours."""
    places = _spread(sparsities)
    middles = (places[1:] + places[:-1]) / 2
    return _gather(np.column_stack([[places[0], *middles], [*middles, places[-1]]]))


def _apart(axes: Axes, one: float, other: float, length: float) -> bool:
    """Whether the labels of two ticks do not touch, on an axis of this length in its own unit."""
    spec = axes.get_subplotspec()
    across = spec.get_gridspec().ncols if spec else 1
    inches = (axes.figure.bbox.width / axes.figure.dpi / across - _LABELS) / length
    letters = (len(_percent(one)) + len(_percent(other))) / 2
    return bool(abs(_spread(one) - _spread(other)) * inches >= letters * _CHARACTER + _GAP)


def _percent(share: float) -> str:
    return f"{100 * share:.4g}"


def draw(
    axes: Axes,
    curve: Curve,
    look: Look,
    shown: pd.Series,
    whole: pd.Series,
    *,
    marker: str = "",
    hollow: bool = False,
) -> np.ndarray:
    """A condition's curve with its band: strong where ``whole``, thin where only ``shown``, else absent.

    A level between two that are not strong is a dot: a single network's table has no other. With a
    ``marker`` every strong level has one.

    Returns the values that the axis must hold: mean and band where strong.
    """
    visible = shown.reindex(curve.sparsity, fill_value=False).to_numpy(dtype=bool)
    strong = visible & whole.reindex(curve.sparsity, fill_value=False).to_numpy(dtype=bool)
    weak = ~strong
    weak = visible & (weak | np.append(weak[1:], False) | np.append(False, weak[:-1]))
    mean, low, high = (np.where(strong, values, np.nan) for values in (curve.mean, curve.low, curve.high))
    axes.fill_between(curve.sparsity, low, high, color=look.colour, alpha=0.18, linewidth=0)
    faded = np.where(weak, curve.mean, np.nan)
    axes.plot(curve.sparsity, faded, color=look.colour, linestyle=look.line, linewidth=0.6, alpha=0.45)
    (line,) = axes.plot(curve.sparsity, mean, color=look.colour, linestyle=look.line, label=look.label)
    alone = strong & ~(np.append(strong[1:], False) | np.append(False, strong[:-1]))
    if marker:
        line.set(marker=marker, markerfacecolor="white" if hollow else look.colour)
    elif alone.any():  # a line has no length there
        line.set(marker="o", markersize=3, markevery=alone)
    return np.concatenate([mean, low, high])


def say_not_measured(axes: Axes, sparsities: np.ndarray) -> None:
    """A panel without anything to show says so, beside the others' sparsities and without a scale."""
    sparsity_axis(axes, sparsities)
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])


def linear_limits(axes: Axes, values: list[np.ndarray], *, zero: bool = True) -> None:
    """From 0 to a little above the largest value; without ``zero`` a little wider than the finite values."""
    if zero:
        axes.set_ylim(0, 1.08 * largest(values) or 1.0)
        return
    held = np.concatenate(values)
    held = held[np.isfinite(held)]
    if held.size:
        pad = 0.08 * (held.max() - held.min()) or 1.0
        axes.set_ylim(held.min() - pad, held.max() + pad)


def log_limits(axes: Axes, values: list[np.ndarray]) -> None:
    """A logarithmic axis a little wider than the positive values; plain decimals on a short one.

    Without any there is no scale.
    """
    positive = np.concatenate(values)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if not positive.size:
        axes.set_yticks([])  # a logarithmic axis would refuse
        return
    axes.set_yscale("log")
    low, high = positive.min(), positive.max()
    pad = max((high / low) ** 0.06, 1.05)
    axes.set_ylim(low / pad, high * pad)
    if high / low < _SHORT:
        few = MaxNLocator(nbins=6, steps=[1, 2, 5, 10])
        axes.yaxis.set_major_locator(few if high / low < 4 else LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def largest(values: list[np.ndarray]) -> float:
    """The largest finite value, 0 if there is none."""
    held = np.concatenate(values)
    return float(held[np.isfinite(held)].max(initial=0.0))


def _spread(sparsity: np.ndarray | float) -> np.ndarray:
    return -np.log(np.maximum(1.0 - np.asarray(sparsity, dtype=float), _LEAST))


def _gather(position: np.ndarray | float) -> np.ndarray:
    return 1.0 - np.exp(-np.asarray(position, dtype=float))
