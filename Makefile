VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
KEY := $(shell cksum < pyproject.toml | cut -d' ' -f1)
INSTALLED := $(VENV)/.promptprism-$(KEY)
DEVELOPED := $(VENV)/.promptprism-dev-$(KEY)

.PHONY: install dev demo test test-fast lint docs docs-links

install: $(INSTALLED)

dev: $(DEVELOPED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	touch $@

$(DEVELOPED): | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@ $(INSTALLED)

demo: install
	$(BIN)/promptprism demo

test: dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env docs docs/_build/html

docs-links: dev
	$(BIN)/python -m sphinx --builder linkcheck docs docs/_build/links
