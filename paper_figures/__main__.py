"""Draw every figure from results tables: ``python -m paper_figures [TABLE]... --out DIR``."""

from __future__ import annotations

from paper_figures.command import figures

if __name__ == "__main__":
    figures(prog_name="python -m paper_figures")
