"""What all figures share: the look of a condition, the sparsity axis, curves that fade, legends outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.typing import LineStyleType

from paper_figures.curves import Curve

STYLE = Path(__file__).with_name("style.mplstyle")
WIDTH = 7.0  # inches: two columns of a page
GREY = "#767676"
BOUND = "#009E73"
NORM = {"l2": r"$\ell_2$", "linf": r"$\ell_\infty$"}
FAMILIES = {
    "linear-binary": "Linear, two classes",
    "linear": "Linear, all classes",
    "mlp": "ReLU network",
}


@dataclass(frozen=True)
class Look:
    """Colour and line style of a condition, the same in every figure."""

    label: str
    colour: str
    line: LineStyleType


CONDITIONS = {
    "dense": Look("dense, trained equally long", "#000000", (0, (5, 1.5))),
    "magnitude": Look("magnitude, retrained", "#0072B2", "solid"),
    "random-retrained": Look("random, retrained", "#D55E00", (0, (5, 1.2, 1.2, 1.2))),
    "random": Look("random, not retrained", "#CC79A7", (0, (1.2, 1.2))),
}
# In the order in which ticks are tried after the ends; one is left out where it would touch another.
_TICKS = (0.9, 0.5, 0.8, 0.99, 0.95, 0.97, 0.999, 0.2, 0.7)
_TICK_DISTANCE = 0.095  # share of the axis
_SHORT = 300.0  # a logarithmic axis spanning less than this factor is labelled in plain decimals


def sparsity_axis(axes: Axes, sparsities: np.ndarray) -> None:
    """Sparsity in percent, spaced as the logarithm of the remaining weights: 90 to 99 % spread out."""
    axes.set_xscale("function", functions=(_spread, _gather))
    first, last = float(sparsities.min()), float(sparsities.max())
    length = _spread(last) - _spread(first) or 1.0
    ticks = [first, last]
    for tick in (*_TICKS, *sparsities):
        apart = min(abs(_spread(tick) - _spread(other)) for other in ticks)
        if first < tick < last and apart >= _TICK_DISTANCE * length:
            ticks.append(float(tick))
    ticks = sorted(set(ticks))
    axes.set_xticks(ticks, [f"{100 * tick:.4g}" for tick in ticks])
    axes.xaxis.minorticks_off()
    margin = 0.03 * length
    axes.set_xlim(float(_gather(_spread(first) - margin)), float(_gather(_spread(last) + margin)))


def draw(axes: Axes, curve: Curve, look: Look, shown: pd.Series, whole: pd.Series) -> np.ndarray:
    """A condition's curve with its band: strong where ``whole``, thin where only ``shown``, else absent.

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
    axes.plot(curve.sparsity, mean, color=look.colour, linestyle=look.line, label=look.label)
    return np.concatenate([mean, low, high])


def condition_handles(conditions: list[str]) -> list[Line2D]:
    """Legend entries of the conditions, and of the fading."""
    looks = [CONDITIONS[name] for name in conditions]
    return [
        *(Line2D([], [], color=look.colour, linestyle=look.line, label=look.label) for look in looks),
        Line2D([], [], color=GREY, linewidth=0.6, alpha=0.7, label="thin: accuracy > 10 % below dense"),
    ]


def linear_limits(axes: Axes, values: list[np.ndarray]) -> None:
    """From 0 to a little above the largest value."""
    axes.set_ylim(0, 1.08 * largest(values) or 1.0)


def log_limits(axes: Axes, values: list[np.ndarray]) -> None:
    """A logarithmic axis a little wider than the positive values, if any; plain decimals on a short one."""
    positive = np.concatenate(values)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if not positive.size:
        return  # nothing to show: a logarithmic axis would refuse
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


def legend_above(figure: Figure, handles: list[Line2D], *, columns: int) -> None:
    """One legend above all panels, where it can cover no data."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def without_rows(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = Figure(figsize=(WIDTH, 0.8))
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure


def _spread(sparsity: np.ndarray | float) -> np.ndarray:
    return -np.log(np.maximum(1.0 - np.asarray(sparsity, dtype=float), 1e-300))


def _gather(position: np.ndarray | float) -> np.ndarray:
    return 1.0 - np.exp(-np.asarray(position, dtype=float))
