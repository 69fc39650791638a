"""The figures that the README and the docs show are those that the committed tables give."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from website.shown import CAPTIONS, FIGURES, SHOWN, captions, shown

# Share of pixels that may differ: letters are drawn a little differently from one platform to another.
DIFFERENT = 5e-4


@pytest.mark.parametrize("name", SHOWN)
def test_a_shown_figure_is_that_of_its_table(name: str) -> None:
    committed, drawn = imread(FIGURES / f"{name}.png"), imread(io.BytesIO(shown(name)))
    again = "`python -m website.shown` draws it again"
    assert committed.shape == drawn.shape, again
    different = float((np.abs(committed - drawn).max(axis=-1) > 0.1).mean())
    assert different < DIFFERENT, again


def test_every_shown_figure_has_its_table() -> None:
    assert {path.stem for path in FIGURES.iterdir()} == set(SHOWN)


def test_every_shown_figure_has_its_caption() -> None:
    assert CAPTIONS.read_text(encoding="utf-8") == captions(), "`python -m website.shown` writes them again"
