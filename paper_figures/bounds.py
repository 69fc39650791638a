"""One network's ladder: what is certified at which radius, Lipschitz constants on balls, random masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.axes import STYLE, log_limits, sparsity_axis
from paper_figures.layout import TWO_COLUMNS
from paper_figures.looks import GREY, NORM, Look
from paper_figures.mask_ladder import RUNGS

_CERTIFICATES = {
    "norm product": Look("norm product", "#D55E00", (0, (1.2, 1.2))),
    "path norm": Look("path norm", "#CC79A7", (0, (3, 1))),
    "smallest global": Look("smallest global constants", "#BBBBBB", "solid"),
    "CROWN": Look("CROWN and local constants", "#009E73", "solid"),
    "CROWN, optimised": Look("the same, slopes optimised", "#0072B2", (0, (5, 1.2, 1.2, 1.2))),
}
_GLOBAL = {
    "smallest global": Look("the smallest", "#BBBBBB", "solid"),
    "norm product": _CERTIFICATES["norm product"],
    "path norm": _CERTIFICATES["path norm"],
}


def figure(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure:
    """A column for each norm; rows: certified accuracy, Lipschitz constants, and random masks if any.

    In a narrow figure the norms lie below each other.
    Raises: ValueError for a table without bounds.
    Rows used: ``radius`` per example, ``accuracy``, ``lipschitz``, ``expected_lipschitz`` of a bounds table.
    """
    norms = [norm for norm in ("linf", "l2") if (table["norm"] == norm).any()]
    if not norms:
        raise ValueError("the table holds no bounds")
    masks = (table["quantity"] == "expected_lipschitz").any()
    panels = [_certified, _constants, *([_masks] if masks else [])]
    with rc_context(fname=STYLE):
        wide = width >= TWO_COLUMNS
        high = 2.7 * len(panels) if wide else (2.2 * len(norms) + 0.9) * len(panels)
        drawn = Figure(figsize=(width, high), layout="constrained")
        parts = np.atleast_1d(np.asarray(drawn.subfigures(len(panels), 1)))
        for part, panel in zip(parts, panels, strict=True):
            handles = {}
            grid = part.subplots(*((1, len(norms)) if wide else (len(norms), 1)), squeeze=False)
            for axes, norm in zip(grid.flat, norms, strict=True):
                panel(axes, table, norm)
                axes.set_title(NORM[norm], loc="left", fontweight="bold")
                if wide and norm != norms[0]:
                    axes.set_ylabel("")
                handles |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
            columns = 3 if wide else 1
            part.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns)
    return drawn


def _certified(axes: Axes, table: pd.DataFrame, norm: str) -> None:
    """The share of the examples whose certified radius is at least r, as a function of r."""
    rows = table[(table["quantity"] == "radius") & (table["norm"] == norm)]
    accuracy = float(table.loc[table["quantity"] == "accuracy", "value"].iloc[0])
    furthest = []
    for method, look in _CERTIFICATES.items():
        radius = np.sort(rows.loc[rows["method"] == method, "value"].to_numpy())
        radius = radius[np.isfinite(radius)]
        if not radius.size:
            continue
        count = int((rows["method"] == method).sum())
        beyond = count - np.arange(radius.size)  # examples certified at radius[k]
        positive = radius > 0
        start, share = np.append(0.0, radius[positive]), beyond[positive] / count
        ends = np.append(share, (count - radius.size) / count)
        axes.step(start, np.append(ends[0], ends[:-1]), where="pre", color=look.colour, linestyle=look.line,
                  label=look.label, **_beneath(method))  # fmt: skip
        furthest.append(float(start[-1]))
    axes.axhline(accuracy, color=GREY, linewidth=0.8, linestyle=(0, (2, 1)), label="clean accuracy")
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, 1.05 * max([*furthest, 0.0]) or 1.0)
    axes.set_xlabel("radius")
    axes.set_ylabel("certified accuracy")


def _beneath(method: str) -> dict[str, Any]:
    """A wide line below the others for the smallest of them, which coincides with one wherever it can."""
    return {"linewidth": 4.0, "zorder": 1.5} if method == "smallest global" else {}


def _constants(axes: Axes, table: pd.DataFrame, norm: str) -> None:
    rows = table[(table["quantity"] == "lipschitz") & (table["norm"] == norm)]
    held = [rows["value"].to_numpy()]
    local = rows[rows["method"] == "local"].sort_values("radius")
    if len(local):
        axes.plot(local["radius"], local["value"], color="#009E73", marker="o", label="on the ball")
    for method, look in _GLOBAL.items():
        (value,) = rows.loc[rows["method"] == method, "value"]
        if np.isfinite(value):
            label = f"everywhere: {look.label}"
            axes.axhline(value, color=look.colour, linestyle=look.line, label=label, **_beneath(method))
    log_limits(axes, held)
    axes.set_xlabel("radius of the ball")
    axes.set_ylabel("mean Lipschitz constant")


def _masks(axes: Axes, table: pd.DataFrame, norm: str) -> None:
    rows = table[
        (table["quantity"] == "expected_lipschitz") & (table["norm"] == norm) & (table["sparsity"] < 1)
    ]
    for method, look in RUNGS.items():
        rung = rows[rows["method"] == method].sort_values("sparsity")
        if not rung.empty:
            axes.plot(
                rung["sparsity"], rung["value"], color=look.colour, linestyle=look.line, label=look.label
            )
    log_limits(axes, [rows["value"].to_numpy()])
    if not rows.empty:
        sparsity_axis(axes, rows["sparsity"].unique())
        axes.set_ylabel(f"bound on $E_M[L]$, classes {rows['pair'].iloc[0].replace('-', ' and ')}")
    axes.set_xlabel(r"sparsity of the masks $\alpha$ (%)")
