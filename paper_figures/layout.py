"""Figures of one or two columns' width: panels in bands that fit, legends above where they cover no data."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
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
_NARROW = 0.8  # height of a panel in a narrow figure, as a share of that in a wide one
_BOLD, _MARGIN = 0.067, 0.6  # of a letter of a title, left of a panel
_LINE = 0.145  # a line of the legend
_HANDLE, _LETTER, _SPACE = 0.36, 0.051, 0.2  # of an entry without text, per letter, between two columns
_TITLES = 0.45  # title and label of the abscissa


@dataclass(frozen=True)
class Panels:
    """Panels[row, column] of a figure, wherever they lie on the page.

    Columns that do not fit beside each other lie in several bands of ``across``. Where ``folded``, each
    column is a band by itself and its rows lie beside each other, ``across`` in a line.
    """

    figure: Figure
    axes: np.ndarray
    across: int
    folded: bool

    def label(self, rows: Sequence[str], columns: Sequence[str], *, below: str) -> None:
        """Label the rows at the left of every band, title the columns, and name the abscissa."""
        for (row, column), axes in np.ndenumerate(self.axes):
            if row == 0:
                title = str(columns[column])
                title += self._clear_of(axes, title)
                axes.set_title(title, loc="left", fontweight="bold")
            lowest = row + (self.across if self.folded else 1) >= len(self.axes)
            axes.tick_params(labelbottom=lowest)
            axes.set_xlabel(below if lowest else "")
            if self.folded or column % self.across == 0:
                axes.set_ylabel(rows[row])
        if not self.folded:
            self.figure.align_ylabels(list(self.axes[:, 0]))

    def _clear_of(self, axes: Axes, title: str) -> str:
        """An empty line below a title that would touch the one at the right."""
        right = axes.get_title(loc="right")
        needed = _BOLD * len(title) + _LETTER * len(right) + _MARGIN
        return "\n" if right and needed > self.figure.get_figwidth() / self.across else ""


def panels(rows: int, columns: int, *, width: float, height: float, together: int = 1) -> Panels:
    """An empty figure; ``height`` is a panel's, in inches, and ``together`` columns stay in one band.

    Panels of one column share their abscissa.
    """
    most = max(together, int(width / _ACROSS) // together * together)
    narrow = width < TWO_COLUMNS
    folded = columns == 1 or (narrow and together == 1 and rows % 2 == 0)
    if folded:
        across = min(rows, most, 3 if rows % 3 == 0 else 2)
        bands, lines = columns, math.ceil(rows / across)
    else:
        bands, lines = math.ceil(columns / most), rows
        across = math.ceil(columns / together / bands) * together
    high = bands * (lines * height * (_NARROW if narrow else 1.0) + _TITLES)
    figure = Figure(figsize=(width, high), layout="constrained")
    grid = figure.add_gridspec(bands * lines, across)
    axes = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        if folded:
            line, place = column * lines + row // across, row % across
        else:
            line, place = column // across * lines + row, column % across
        panel = figure.add_subplot(grid[line, place], sharex=axes[0, column] if row else None)
        panel.set_title("")  # else the style's place of titles is not that of panels without one
        axes[row, column] = panel
    return Panels(figure, axes, across, folded)


def by_norm(subjects: list[Subject]) -> list[tuple[Subject, str, str]]:
    """A column for every subject and norm of the perturbation, and its title."""
    several = len(subjects) > 1
    return [
        (subject, norm, f"{subject.title}, {sign}" if several else f"{sign} distance")
        for subject in subjects
        for norm, sign in NORM.items()
    ]


def condition_handles(subjects: Sequence[Subject], only: Set[str] | None = None) -> list[Line2D]:
    """Legend entries of all conditions of the subjects, or ``only`` of these, and of the fading."""
    names = {name for subject in subjects for name in subject.conditions} if only is None else only
    looks = [look_of(name) for name in in_order(set(names), CONDITIONS)]
    return [
        *(Line2D([], [], color=look.colour, linestyle=look.line, label=look.label) for look in looks),
        Line2D([], [], color=GREY, linewidth=0.6, alpha=0.7, label="thin: accuracy collapsed"),
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
    entry = _HANDLE + _LETTER * longest + _SPACE
    columns = min(len(handles), max(1, int((figure.get_figwidth() + _SPACE) / entry)))
    lines = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / lines)
    figure.set_figheight(figure.get_figheight() + _LINE * lines + 0.1)
    narrow = figure.get_figwidth() < TWO_COLUMNS
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        handlelength=2.2 if narrow else None,
        columnspacing=1.2 if narrow else None,
    )
