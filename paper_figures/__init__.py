"""The paper's figures, each made from a results table alone: no network, no theorem, no GPU is needed.

``python -m paper_figures`` draws those of all committed tables, ``python -m paper_figures TABLE --out DIR``
those of one; :mod:`paper_figures.gallery` lists them. Every figure's module has one public function,
``figure(table, width=...)``, where ``table`` holds the rows about whole networks (``example`` is NA) of a
results table; it returns None where the table has nothing to show.
"""
