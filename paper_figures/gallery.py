"""The list of figures, in the order in which a report shows them, and how one is turned into a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from paper_figures import (
    accuracy,
    activation_sparsity,
    around_examples,
    attacks,
    controls,
    gradient_masking,
    margin_gradient,
    mask_ladder,
    mask_prediction,
    robustness,
    sandwich,
    trade_off,
)
from paper_figures.axes import STYLE
from paper_figures.layout import TWO_COLUMNS
from paper_figures.subjects import around, examples

FORMATS = ("svg", "png")


class Draw(Protocol):
    """Draws a figure of this width in inches; None if the table has nothing to show."""

    def __call__(self, table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Figure | None: ...


@dataclass(frozen=True)
class Entry:
    """A figure's file name, title, function, and caption.

    In it ``{over}`` stands for the averaging, ``{eps}`` for the step of FGS, ``{unit}`` for that of
    distances, ``{thin}`` for which lines are thin and which left out, ``{few}`` for the number of examples
    around which balls were looked at. Where it is about a ``few`` examples, that of the table is not told.
    """

    name: str
    title: str
    draw: Draw
    caption: str
    few: bool = False


ENTRIES = (
    Entry(
        "robustness",
        "Robustness against sparsity, measured and predicted",
        robustness.figure,
        "Measured mean radii and FGS accuracy{eps} (lines, {over}) with the exact radius of linear models "
        "(circles on the lines), the tightest informative bound for the magnitude-pruned networks "
        "(triangles: Hölder on the support, Jensen, Markov, certificate) and the universal ceiling at the "
        "dense networks' correct examples (named, and drawn where it is near).{thin}{unit}",
    ),
    Entry(
        "accuracy",
        "Clean accuracy against sparsity",
        accuracy.figure,
        "Clean test accuracy ({over}). Other figures draw thin lines where any network lies more than 10 % "
        "below the dense one of its seed; dotted: 10 % below the mean of the dense networks.",
    ),
    Entry(
        "controls",
        "Gain over the equally trained dense network",
        controls.figure,
        "Gain in mean radius (best attack) and change of accuracy of every condition against the dense "
        "network of the same seed that was trained equally long ({over}); conditions that are not trained "
        "on after their first training are held against the network at sparsity 0.{thin}",
    ),
    Entry(
        "trade_off",
        "Gain in robustness against lost accuracy",
        trade_off.figure,
        "Gain in mean radius (best attack) over the clean accuracy lost, in percentage points, against the "
        "same networks: a mark for every sparsity, its bar the interval ({over}). Sparsities at which a "
        "network lies more than 10 % below the dense one's accuracy, or an attack found nothing, or nothing "
        "within the largest distance in the data's box, for an example of a network, are left out. The "
        "abscissa is linear up to one point and logarithmic beyond.",
    ),
    Entry(
        "gradient_masking",
        "FGS and DeepFool against the strongest attack",
        gradient_masking.figure,
        "Above: mean radius over that of the equally trained dense network, as FGS (l_inf) or DeepFool "
        "(l_2) and as the strongest attack see it ({over}); stars mark the best sparsity before accuracy "
        "collapses, shading the sparsities where the mean of one attack is a gain and that of the other a "
        "loss, a point or more apart, significant or not. Below: by how much the mean radius of FGS or "
        "DeepFool exceeds that of the strongest attack; growth beyond the dense networks' is a sign of "
        "gradient masking.{thin}",
    ),
    Entry(
        "attacks",
        "Robustness against sparsity, attack by attack",
        attacks.figure,
        "Above: mean radius of the pruned networks by every attack, and by the strongest for every example, "
        "beside that of the equally trained dense networks by the strongest (dashed; {over}). Below: by how "
        "much an attack's mean radius exceeds the strongest's, on a logarithmic axis.{thin}{unit}",
    ),
    Entry(
        "sandwich",
        "Certificate, attacks and ceiling of the ReLU network",
        sandwich.figure,
        "Mean radius of the magnitude-pruned ReLU networks (geometric {over}): the truth lies in the "
        "shaded gap between the certificate and the best attack, whose ratio is written at the first "
        "sparsity and the last before accuracy collapses.{thin}{unit}",
    ),
    Entry(
        "margin_gradient",
        "Margin and gradient behind the radius",
        margin_gradient.figure,
        "Margin and dual gradient norm at the nearest boundary of the ReLU networks (geometric {over}), "
        "and the mean radius beside accuracy × margin / gradient norm, its first-order estimate "
        "(crosses).{thin}",
    ),
    Entry(
        "around_examples",
        "Bounds and estimates around single examples",
        around_examples.figure,
        "Mean radius of the first {few} test examples of the pruned networks, exact, as certified by linear "
        "relaxation, and as CLEVER estimates it, which is never above a ball's radius. Mean Lipschitz "
        "constant of g_y - g_k on a ball around them: two bounds, CLEVER's estimate, and the largest sampled "
        "gradient, itself a lower bound (both geometric {over}). Share of these examples for which an attack "
        "finds no point within 1.05 times the exact radius (arithmetic mean). Thin where a network's "
        "accuracy lies more than 10 % below the dense one's.{unit}",
        few=True,
    ),
    Entry(
        "activation_sparsity",
        "Robustness against the sparsity of activations",
        activation_sparsity.figure,
        "Networks trained with an L1 term on the inputs of the last layer, against the share of these that "
        "is zero ({over}): mean radius over that of the dense networks, trained equally long without "
        "it, by DeepFool or the smallest FGS step and by the strongest attack; FGS accuracy{eps}; clean "
        "accuracy.{thin}",
    ),
    Entry(
        "mask_ladder",
        "Expected Lipschitz constant under random masks",
        mask_ladder.figure,
        "Upper bounds on the expected Lipschitz constant of the ReLU network under random masks "
        "(geometric {over}; F and M are the paper's) above the Monte Carlo mean of the largest gradient norm "
        "over the first 32 test examples, itself a lower estimate; its bars: five times its standard error "
        "over the masks, the mean of the seeds', at most nine tenths of the mean.",
        few=True,
    ),
    Entry(
        "mask_prediction",
        "Moment propagation under random masks",
        mask_prediction.figure,
        "Mean radius and accuracy of randomly masked networks, predicted by moment propagation and "
        "measured ({over}); stars mark alpha*, the sparsity of the largest mean radius before the accuracy "
        "of a network, measured or predicted, falls by more than 10 %. Radii are left out where the attacks "
        "found nothing, or nothing within the largest distance in the data's box, for an example of a "
        "network.",
    ),
)


_THIN = (
    " A line is thin where a network's accuracy lies more than 10 % below the dense one's, and a radius left "
    "out where an attack found nothing, or nothing within the largest distance in the data's box, for an "
    "example of a network."
)
_UNIT = " Distances in the unit of the inputs: for images the range of a pixel."
_SURGERY = " Sparsity under network surgery: share that its thresholds cut at first; splicing leaves less."


def drawn(table: pd.DataFrame, *, width: float = TWO_COLUMNS) -> Iterator[tuple[Entry, Figure]]:
    """The figures that have something to show, one after the other."""
    for entry in ENTRIES:
        figure = entry.draw(table, width=width)
        if figure:
            yield entry, figure


def caption(entry: Entry, table: pd.DataFrame) -> str:
    """The caption with the number of seeds and examples and the interval filled in."""
    seeds = table.groupby(["dataset", "family", "pruning"], observed=True)["seed"].nunique()
    few, many = int(seeds.min()), int(seeds.max())
    number = f"{many} seeds" if few == many else f"{few} to {many} seeds"
    band = "band: pointwise 95 % t-interval over seeds"
    over = f"mean over {number}, {band}" if many > 1 else "mean of one seed, no interval"
    levels = _SURGERY if "surgery" in set(table["pruning"]) else ""
    steps = table.loc[table["quantity"] == "fgs_accuracy", "eps"].dropna().unique()
    eps = f" at eps = {', '.join(f'{step:g}' for step in sorted(steps))}" if len(steps) else ""
    looked_at = around(table) or "few"
    text = entry.caption.format(over=over, eps=eps, unit=_UNIT, thin=_THIN, few=looked_at)
    return f"{text}{levels}{'' if entry.few else _counted(examples(table))}"


def _counted(counts: dict[str, int]) -> str:
    """The number of test examples, by subject where it differs."""
    if not counts:
        return ""
    if len(set(counts.values())) == 1:
        return f" n = {next(iter(counts.values())):,} test examples."
    return f" Test examples: {', '.join(f'{count:,} ({title})' for title, count in counts.items())}."


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
