# make demo   the main job, end to end, on this machine (creates .venv when it is missing)
# make test   the test suite (make test-slow: the minutes-long ones)
# make small  the comparison with three seeds and more images
# make chaos  the fault matrix: what is killed, filled or corrupted, and how long recovery takes
# make gpu-check  what only a GPU can show: tests, training on 1 and 2 GPUs, bf16, benchmarks
# make soak   half an hour of rendering while servers are killed (ARGS="--minutes 5")
# make lint   ruff and mypy
# make setup  .venv alone     make clean  removes runs/ and what tools keep
#
# PYTHON  interpreter for the virtual environment (3.10 to 3.12)
# TORCH   what to install as torch and torchvision, which must belong together. Without a GPU the
#         CPU build is preferred; where your package index has none (PyPI does not), pip takes the
#         ordinary build, which runs on a CPU too.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
TORCH  ?= $(if $(HAS_GPU),torch torchvision,torch==2.14.1 torchvision==0.29.1)
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo small test test-slow chaos soak gpu-check lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is not Python 3.10 to 3.12: make demo PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV): torch, ray and the rest (several minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(foreach package,$(TORCH),'$(package)')
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(BIN)/.installed

demo: setup
	$(BIN)/posegen demo $(ARGS)

small: setup
	$(BIN)/posegen demo experiment=small $(ARGS)

test: setup
	$(BIN)/python -m pytest --numprocesses=2 $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout=3600 $(ARGS)

chaos: setup
	$(BIN)/python -m pytest -m chaos --timeout=900 $(ARGS)

soak: setup
	$(BIN)/python benchmarks/soak.py $(ARGS)

gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
