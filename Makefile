# Needs Python 3.11 or newer; everything else is installed into .venv, or where VENV says:
# make test PYTHON=python3.13 VENV=.venv-3.13
# The first python that starts and is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
    $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The oldest Python that is supported, with the lowest versions of all that is needed.
LOWEST := .venv-lowest/bin/python
# Tiny tensors: more than one thread a process only makes the processes wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-all test-lowest check bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about a minute) ..."
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one with make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/installed  ## train a point-cloud classifier on this machine, about a minute
	@$(BIN)/python -m vision3d_engine demo

test: $(VENV)/installed  ## all tests but the slow stories
	$(BIN)/python -m pytest

test-all: $(VENV)/installed  ## all tests
	$(BIN)/python -m pytest -m "slow or not slow"

.venv-lowest/installed: pyproject.toml tools/lowest.py
	@echo "installing into .venv-lowest (minutes: PyPI's torch for x86_64 is a CUDA build) ..."
	@python3.11 -m venv .venv-lowest
	@$(LOWEST) -m pip install --quiet --disable-pip-version-check -e . $$($(LOWEST) tools/lowest.py)
	@touch $@

test-lowest: .venv-lowest/installed  ## all tests but the slow stories, with the lowest versions that pyproject.toml declares
	$(LOWEST) -m pytest

check: $(VENV)/installed  ## style, types, layers, examples of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_docs.py

bench: $(VENV)/installed  ## what the engine costs per step
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis
