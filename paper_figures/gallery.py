"""The list of figures, in the order in which a report shows them, and how one is turned into a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from paper_figures import accuracy, margin_gradient, mask_ladder, robustness, sandwich
from paper_figures.axes import STYLE

FORMATS = ("svg", "png")


@dataclass(frozen=True)
class Entry:
    """A figure's file name, title, function, and caption; ``{over}`` stands for the averaging."""

    name: str
    title: str
    draw: Callable[[pd.DataFrame], Figure]
    caption: str


ENTRIES = (
    Entry(
        "robustness",
        "Robustness against sparsity, measured and predicted",
        robustness.figure,
        "Measured mean radii and FGS accuracy (lines, {over}) with the exact radius of linear models "
        "(circles on the lines), the tightest informative bound for the magnitude-pruned networks "
        "(triangles: Hölder on the support, Jensen, Markov, certificate) and the universal ceiling at the "
        "dense networks' correct examples (named, and drawn where it is near); "
        "a line is thin where accuracy lies more than 10 % below the dense "
        "networks', and ends where more than 1 % of the examples count with the cap.",
    ),
    Entry(
        "accuracy",
        "Clean accuracy against sparsity",
        accuracy.figure,
        "Clean test accuracy ({over}); below the dotted level other figures draw thin lines.",
    ),
    Entry(
        "sandwich",
        "Certificate, attacks and ceiling of the ReLU network",
        sandwich.figure,
        "Mean radius of the magnitude-pruned ReLU networks (geometric {over}): the truth lies in the shaded "
        "gap between the certificate and the best attack, whose ratio is written at the first sparsity and "
        "the last before accuracy collapses.",
    ),
    Entry(
        "margin_gradient",
        "Margin and gradient behind the radius",
        margin_gradient.figure,
        "Margin and dual gradient norm at the nearest boundary of the ReLU networks (geometric {over}), and "
        "the mean radius beside accuracy × margin / gradient norm, its first-order estimate (crosses).",
    ),
    Entry(
        "mask_ladder",
        "Expected Lipschitz constant under random masks",
        mask_ladder.figure,
        "Upper bounds on the expected Lipschitz constant of the ReLU network under random masks (geometric "
        "{over}) above the Monte Carlo mean of the largest gradient norm over test examples, itself a lower "
        "estimate.",
    ),
)


def caption(entry: Entry, table: pd.DataFrame) -> str:
    """The caption with the number of seeds and the interval filled in."""
    seeds = int(table["seed"].nunique())
    over = f"mean over {seeds} seeds, band: 95 % t-interval" if seeds > 1 else "mean of one seed, no interval"
    return entry.caption.format(over=over)


def render(figure: Figure, format: str) -> bytes:
    """The figure as an SVG or PNG file's content; equal figures give equal bytes."""
    content = io.BytesIO()
    with rc_context(fname=STYLE):
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            figure.set_layout_engine(None)  # settled: neither saving nor the next format need repeat it
        metadata = {"Date": None} if format == "svg" else {}
        figure.savefig(content, format=format, metadata=metadata)
    return content.getvalue()
