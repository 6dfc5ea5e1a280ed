PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One thread a worker: the tests are small, and two workers fill two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: demo test lint fast docs results bench coverage mutants clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cflows needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Trains a discrete and a continuous model on the digits and compares them; typed again, it goes on where it stopped.
demo: $(VENV)/.installed
	$(BIN)/python train.py configs/digits/real_nvp.toml --run-dir runs/demo/real_nvp --resume
	$(BIN)/python train.py configs/digits/vp_sde.toml --run-dir runs/demo/vp_sde --resume
	$(BIN)/python compare.py runs/demo/real_nvp runs/demo/vp_sde --out runs/demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

# Without the slow tests.
fast: $(VENV)/.installed
	$(PYTEST) -m 'not slow'

# The site, in site/index.html: opens from the disk, without a server and without a network. `make test` builds it too.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Longer trainings and measurements; each leaves docs/results/<name>.json, from which the tables of the docs are made.
results: $(VENV)/.installed
	$(BIN)/python -m benchmarks.run

# Times beside the peers of the extra `bench`, for an idle machine; one to two hours.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --bench

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench,dev]'
	touch $@

# Lines and branches of the three packages that the tests run, and which test runs which; twenty minutes.
COVERAGE := runs/coverage/tests.xml
coverage: $(VENV)/.installed
	mkdir -p runs/coverage
	$(PYTEST) core discrete cflows tests/core tests/discrete tests/cflows \
	  $(filter-out tests/test_docs.py tests/test_site.py,$(wildcard tests/test_*.py)) \
	  --cov --cov-context=test --cov-report=term-missing:skip-covered --cov-fail-under=95 --junitxml=$(COVERAGE)

$(COVERAGE):
	$(MAKE) coverage

# How many of 300 small mistakes in core, discrete and cflows the tests notice; an hour, and goes on where it was stopped.
mutants: $(COVERAGE)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.run mutants

clean:
	rm -rf $(VENV) runs site build
