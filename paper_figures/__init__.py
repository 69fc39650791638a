"""The paper's figures, each made from a results table alone: no network, no theorem, no GPU is needed.

``python -m paper_figures results.parquet --out figures`` draws all of them; :mod:`paper_figures.gallery`
lists them. Every figure's module has one public function, ``figure(table)``, where ``table`` holds the rows
about whole networks (``example`` is NA) of a results table.
"""
