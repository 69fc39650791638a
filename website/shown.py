"""The figures that the README and the docs show, and their captions: ``python -m website.shown``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from paper_figures.files import read_network_rows
from paper_figures.gallery import ENTRIES, Entry, caption, render

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
CAPTIONS = ROOT / "docs" / "captions.md"
# Name in docs/figures: the table and the figure of it.
SHOWN = {
    "robustness": ("digits", "robustness"),
    "around-examples": ("digits-local", "around_examples"),
    "E1-robustness": ("E1", "robustness"),
    "E2-robustness": ("E2", "robustness"),
    "E3-controls": ("E3", "controls"),
    "E3-fine": ("E3-fine", "controls"),
    "E3-gradient-masking": ("E3", "gradient_masking"),
    "E3-attacks": ("E3", "attacks"),
    "E3-long": ("E3-long", "robustness"),
    "E4-gradient-masking": ("E4", "gradient_masking"),
    "E4-attacks": ("E4", "attacks"),
    "E7-activation-sparsity": ("E7", "activation_sparsity"),
    "E8-surgery": ("E8", "controls"),
    "controls": ("controls-mnist", "controls"),
    "controls-trade-off": ("controls-mnist", "trade_off"),
    "structured": ("structured-mnist", "controls"),
    "two-of-four": ("two-of-four-mnist", "controls"),
    "mask-ladder": ("controls-mnist", "mask_ladder"),
}


def shown(name: str) -> bytes:
    """The content of one PNG file."""
    entry, table = _source(name)
    drawing = entry.draw(table)
    assert drawing, f"the table of {name} has nothing to show of {entry.name}"
    return render(drawing, "png")


def captions() -> str:
    """The page of all captions."""
    parts = [
        "# Captions",
        "Of the figures in the [README](../README.md) and the [findings](findings.md), drawn with "
        "`python -m website.shown`.",
    ]
    for name in SHOWN:
        text = caption(*_source(name))
        parts.append(f"**[{name}](figures/{name}.png)**, from `{SHOWN[name][0]}.parquet`. {text}")
    return "\n\n".join(parts) + "\n"


@cache
def _rows(table: str) -> pd.DataFrame:
    return read_network_rows(ROOT / "paper_figures" / "data" / f"{table}.parquet")


def _source(name: str) -> tuple[Entry, pd.DataFrame]:
    table, figure = SHOWN[name]
    (entry,) = [entry for entry in ENTRIES if entry.name == figure]
    return entry, _rows(table)


if __name__ == "__main__":
    for name in SHOWN:
        (FIGURES / f"{name}.png").write_bytes(shown(name))
    CAPTIONS.write_text(captions(), encoding="utf-8")
