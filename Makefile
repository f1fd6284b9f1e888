# Two commands do all the set-up on a fresh machine:
#   make quickstart   the main job on the built-in data: fine-tune, quantize, export, measure
#   make test         ruff, mypy --strict and all tests
# TORCH_INDEX=URL takes torch from that index, e.g. one with CPU builds only (see README.md).

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test install

quickstart: $(VENV)/run.stamp
	$(BIN)/quantkit run builtin.yaml --overwrite

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

install: $(VENV)/run.stamp

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[train,cpu]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[train,cpu,dev]'
	touch $@
