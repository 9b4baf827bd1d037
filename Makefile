PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait cost more than they bring on cores that have other work; tests keep to one.
export OMP_WAIT_POLICY := passive
TEST_ENV := OMP_NUM_THREADS=1 WANDB_MODE=offline

# Licences that would ask something of those who only use the package; LGPL (chardet) and MPL do not.
FORBIDDEN := 'GNU General Public License v;Affero;AGPL;GPL-2.0-only;GPL-3.0;Proprietary;Commercial;UNKNOWN'

.PHONY: demo install test check soak audit test-floor atlas clean

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

soak: install  ## the slow tests: killed runs and sweeps, several processes, searches, the bench
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile -m slow

audit: install  ## the pinned packages: known vulnerabilities, and licences; needs a network
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit pip-licenses
	.venv/audit/bin/pip-licenses --python $(BIN)/python --partial-match --fail-on $(FORBIDDEN)
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

test-floor:  ## the unit tests with the lowest versions that pyproject.toml admits, torch aside; needs a network
	$(PYTHON) -m venv .venv/floor
	$(PYTHON) tests/floors.py > .venv/floor/constraints.txt
	.venv/floor/bin/pip install --quiet torch==2.13.0 --constraint .venv/floor/constraints.txt --editable '.[dev]'
	$(TEST_ENV) .venv/floor/bin/python -m pytest -n auto --dist loadfile tests/unit

atlas: install  ## remake the embedded world
	$(BIN)/python experiments/atlas/build.py

clean:
	rm -rf .venv build dist
