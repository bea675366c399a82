# Each target creates .venv when it is missing, with Python 3.11 or newer and nothing else at hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: bench check conformance demo format kill-trial test

$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## train a small model of handwritten digits and look at everything it gives
	rm -rf demo
	$(BIN)/vit-family demo --output demo

bench: $(INSTALLED)  ## time ViT-S/16 and DeiT-Ti against timm and transformers
	$(BIN)/vit-family benchmark vit_small_patch16_224 deit_tiny_patch16_224 --against timm transformers
	$(BIN)/vit-family benchmark vit_small_patch16_224 deit_tiny_patch16_224 --against timm transformers --mode train

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(INSTALLED)  ## lint, format and types of the public interface
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(INSTALLED)  ## run transformers' own common tests on every architecture
	$(BIN)/python tests/conformance.py

POINTS ?= 1000
kill-trial: $(INSTALLED)  ## kill training runs at a thousand points and compare what they end with, bit for bit
	$(BIN)/python tests/kill_trial.py --points $(POINTS)
