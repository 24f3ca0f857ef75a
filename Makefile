PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check bench bench-baseline gpu-bench format

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/bdbench run quick --jobs 2

# A process for each core; a file stays in one, for what its tests share.
PYTEST := $(BIN)/pytest -n auto --dist loadfile

test: install
	$(PYTEST)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)
	$(BIN)/pytest --doctest-modules attacks benchmark defenses models || [ $$? -eq 5 ]

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
