"""The figures that the README and the docs show, from the committed tables: ``python -m website.shown``."""

from __future__ import annotations

from pathlib import Path

from paper_figures.files import read_network_rows
from paper_figures.gallery import ENTRIES, render

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
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
    "structured": ("structured-mnist", "controls"),
    "two-of-four": ("two-of-four-mnist", "controls"),
    "mask-ladder": ("controls-mnist", "mask_ladder"),
}


def shown(name: str) -> bytes:
    """The content of one PNG file."""
    table, figure = SHOWN[name]
    (entry,) = [entry for entry in ENTRIES if entry.name == figure]
    drawing = entry.draw(read_network_rows(ROOT / "paper_figures" / "data" / f"{table}.parquet"))
    assert drawing, f"{table} has nothing to show of {figure}"
    return render(drawing, "png")


if __name__ == "__main__":
    for name in SHOWN:
        (FIGURES / f"{name}.png").write_bytes(shown(name))
