# Needs Python 3.11 or newer; everything else is installed into .venv.
# The first python that starts and is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
    $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
# Tiny tensors: more than one thread a process only makes the processes wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-all check bench clean

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (about a minute) ..."
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one with make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/installed  ## train a point-cloud classifier on this machine, about a minute
	@$(BIN)/python -m vision3d_engine demo

test: .venv/installed  ## all tests but the slow stories
	$(BIN)/python -m pytest

test-all: .venv/installed  ## all tests
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/installed  ## style, types, layers, examples of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_docs.py

bench: .venv/installed  ## what the engine costs per step
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
