PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait cost more than they bring on cores that have other work; tests keep to one.
export OMP_WAIT_POLICY := passive
TEST_ENV := OMP_NUM_THREADS=1 WANDB_MODE=offline

.PHONY: demo install test check soak atlas clean

demo: install  ## the main job on the embedded world
	$(BIN)/python -m tskd.run

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install  ## all tests
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile

check: install  ## what CI runs: style, types, layers, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile

soak: install  ## the slow tests: runs and sweeps killed at random moments
	$(TEST_ENV) $(BIN)/python -m pytest -n auto -m slow

atlas: install  ## remake the embedded world
	$(BIN)/python experiments/atlas/build.py

clean:
	rm -rf .venv build dist
