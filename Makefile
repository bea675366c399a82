# Each target creates .venv when it is missing, with Python 3.11 or newer and nothing else at hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: conformance test check format

$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n 2

check: $(INSTALLED)  ## lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(INSTALLED)  ## run transformers' own common tests on every architecture
	$(BIN)/python tests/conformance.py
