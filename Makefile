# make verify: the main job on scikit-learn's digits.   make test: all tests.
# make figures: all figures of the committed results, into figures/.   make docs: the site, into site/.
# make wheel: the wheel, into dist/, and the main job, small, run from it in an environment of its own.
# make bench MNIST=FILE.npz: the tables of docs/benchmarks.md, into results/bench: an hour, nothing else running.
# One environment, .venv, built from constraints.txt.

PYTHON ?= python3
OUT ?= results/bench
BIN := .venv/bin
INSTALLED := .venv/installed

# Installations compile nothing in advance; what is used is compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: verify test lint bench figures docs wheel clean
.DEFAULT_GOAL := verify

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[dev,docs]"
	touch $@

verify: $(INSTALLED)
	$(BIN)/sparse-robustness verify

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/pre-commit run --all-files

BENCHMARKS := certificates training attacks hidden_norms compaction convolutions

bench: $(INSTALLED)
	@test -n "$(MNIST)" || { echo "give MNIST=FILE.npz, with peers on PYTHONPATH: docs/benchmarks.md"; exit 2; }
	for name in $(BENCHMARKS); do \
		$(BIN)/python -m benchmarks.$$name --mnist "$(MNIST)" --out "$(OUT)/$$name.csv" || exit; \
	done

figures: $(INSTALLED)
	$(BIN)/python -m paper_figures

docs: figures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel:
	rm -rf dist
	$(PYTHON) -m venv dist/empty
	dist/empty/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	dist/empty/bin/pip install --quiet --no-compile -c constraints.txt dist/*.whl
	cd dist && env -u PYTHONPATH empty/bin/python -c \
		"import empirical, sys; assert empirical.__file__.startswith(sys.prefix), empirical"
	cd dist && env -u PYTHONPATH empty/bin/sparse-robustness verify --seeds 1 --sparsities 0,0.9 --out verify

clean:
	rm -rf .venv dist site .pytest_cache .hypothesis .ruff_cache
