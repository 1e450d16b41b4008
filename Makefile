# make demo, make test: everything from a fresh clone. Only .venv is made, inside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard proto/fedhelm/v1/*.proto)

.PHONY: install demo check test format proto docs bench clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: install
	$(BIN)/python proto/generate.py

docs: install
	$(BIN)/python -m docs.generate

bench: install
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
