# make demo, make test: everything from a fresh clone. Only .venv is made, inside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard proto/fedhelm/v1/*.proto)

.PHONY: install demo check test test-long format proto docs bench faults clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 4) else "Fedhelm needs Python 3.11.4 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints.txt -e '.[torch,tensorboard,postgres,dev]'
	@touch $@

demo: install
	$(BIN)/fedhelm demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m docs.generate --check

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What takes over a minute: thousands of simulated seeds, an hour of load. Not part of CI.
test-long: install
	$(BIN)/python -m pytest -m long --timeout 0

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: install
	$(BIN)/python proto/generate.py

docs: install
	$(BIN)/python -m docs.generate

bench: install
	$(BIN)/python -m bench

# N trials of the fault laboratory, beginning with this seed; trials done already are skipped.
N ?= 200
SEED ?= 1
faults: install
	$(BIN)/python -m bench.faults --n $(N) --seed $(SEED)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
