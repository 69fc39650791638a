"""Figures of one or two columns' width: panels in bands that fit, legends above where they cover no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures.looks import CONDITIONS, GREY, NORM, in_order, look_of
from paper_figures.subjects import Subject

# Inches on the printed page.
WIDTHS = {"one-column": 3.4, "two-column": 7.0}
TWO_COLUMNS = WIDTHS["two-column"]
_ACROSS = 1.45  # the narrowest panel with its labels
_LINE = 0.145  # a line of the legend
_TITLES = 0.45  # title and label of the abscissa


@dataclass(frozen=True)
class Panels:
    """Panels[row, column] of a figure; where there are too many columns for the width, in several bands."""

    figure: Figure
    axes: np.ndarray
    across: int

    def at_left(self, column: int) -> bool:
        """Whether a column is the first of its band."""
        return column % self.across == 0

    def label(self, rows: list[str], columns: list[str], *, below: str) -> None:
        """Label the rows at the left of every band, title the columns, and name the abscissa."""
        for column, title in enumerate(columns):
            self.axes[0, column].set_title(title, loc="left", fontweight="bold")
            self.axes[-1, column].set_xlabel(below)
            if self.at_left(column):
                for row, label in enumerate(rows):
                    self.axes[row, column].set_ylabel(label)
        lefts = [self.axes[row, 0] for row in range(len(rows))]
        self.figure.align_ylabels(lefts)


def panels(rows: int, columns: int, *, width: float, height: float, together: int = 1) -> Panels:
    """An empty figure; ``height`` is a panel's, in inches, and ``together`` columns stay in one band.

    Panels of one column share their abscissa.
    """
    most = max(together, int(width / _ACROSS) // together * together)
    bands = math.ceil(columns / most)
    across = math.ceil(columns / together / bands) * together
    figure = Figure(figsize=(width, bands * (rows * height + _TITLES)), layout="constrained")
    grid = figure.add_gridspec(bands * rows, across)
    axes = np.empty((rows, columns), dtype=object)
    for column in range(columns):
        band, place = divmod(column, across)
        for row in range(rows):
            above: Axes | None = axes[0, column] if row else None
            axes[row, column] = figure.add_subplot(grid[band * rows + row, place], sharex=above)
            axes[row, column].tick_params(labelbottom=row == rows - 1)
    return Panels(figure, axes, across)


def by_norm(subjects: list[Subject]) -> list[tuple[Subject, str, str]]:
    """A column for every subject and norm of the perturbation, and its title."""
    several = len(subjects) > 1
    return [
        (subject, norm, f"{subject.title}, {sign}" if several else f"{sign} distance")
        for subject in subjects
        for norm, sign in NORM.items()
    ]


def condition_handles(subjects: list[Subject], *, without: tuple[str, ...] = ()) -> list[Line2D]:
    """Legend entries of all conditions of the subjects, and of the fading."""
    names = {name for subject in subjects for name in subject.conditions} - set(without)
    looks = [look_of(name) for name in in_order(names, CONDITIONS)]
    return [
        *(Line2D([], [], color=look.colour, linestyle=look.line, label=look.label) for look in looks),
        Line2D([], [], color=GREY, linewidth=0.6, alpha=0.7, label="thin: accuracy > 10 % below dense"),
    ]


def labelled(figure: Figure, *, first: Sequence[str] = ()) -> list[Line2D]:
    """One legend entry per label in any panel, those named ``first`` before the others."""
    found = {}
    for axes in figure.axes:
        found |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [text for text in first if text in found] + [text for text in found if text not in first]
    return [found[text] for text in order]


def legend_above(figure: Figure, handles: list[Line2D]) -> None:
    """One legend above all panels in as many columns as fit; the figure grows by its height."""
    longest = max(len(str(handle.get_label()).replace("$", "")) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / (0.45 + 0.056 * longest))))
    lines = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / lines)
    figure.set_figheight(figure.get_figheight() + _LINE * lines + 0.1)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
