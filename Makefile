PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-oldest check tree bench bench-baseline gpu-bench format

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/bdbench run quick

# The package as one tree of links, for what reads files and not an installation: mypy, import-linter,
# doctests, an editor, or `PYTHONPATH=build/tree python -m bdbench`.
tree:
	rm -rf build/tree
	mkdir -p build/tree/bdbench
	ln -s $(CURDIR)/benchmark/* build/tree/bdbench/
	ln -s $(CURDIR)/attacks $(CURDIR)/defenses $(CURDIR)/models build/tree/bdbench/

# A process for each core; a file stays in one, for what its tests share. The order is that of
# tests/conftest.py, where the files that take longest come first.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest $(PARALLEL)

test: install
	$(PYTEST)

# The oldest versions that setup.cfg allows, in an environment of their own.
OLDEST := build/oldest

$(OLDEST)/installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check \
	    --constraint constraints-oldest.txt --editable ".[test]"
	touch $@

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/pytest $(PARALLEL)

check: install tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=build/tree $(BIN)/lint-imports --no-cache
	$(PYTEST)
	PYTHONPATH=build/tree $(BIN)/pytest --doctest-modules build/tree/bdbench || [ $$? -eq 5 ]

BENCH := $(BIN)/pytest tests/overhead --benchmark-only -s \
    --benchmark-columns=min,median,rounds --benchmark-json=results/overhead.json

bench: install
	$(BENCH)
	$(BIN)/python tests/overhead/compare.py results/overhead.json results/overhead-baseline.json

bench-baseline: install
	$(BENCH)
	cp results/overhead.json results/overhead-baseline.json

gpu-bench: install
	$(BIN)/python tests/overhead/gpu.py --json results/gpu-bench.json

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
