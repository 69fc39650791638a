# make verify: the main job on scikit-learn's digits.   make test: all tests.
# make figures: all figures of the committed results, into figures/.   make docs: the site, into site/.
# One environment, .venv, built from constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: verify test lint bench figures docs clean
.DEFAULT_GOAL := verify

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,docs]"
	touch $@

verify: $(INSTALLED)
	$(BIN)/sparse-robustness verify

test: $(INSTALLED)
	$(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/pre-commit run --all-files

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

figures: $(INSTALLED)
	$(BIN)/python -m paper_figures

docs: figures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv site .pytest_cache .hypothesis .ruff_cache
