# Everything a person does with a checkout. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
EXTRAS := web,aggregator,postgresql,demo,nnunet,training,dev

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: install
install: $(STAMP)  ## make .venv and install everything into it

.PHONY: run
run: $(STAMP)  ## the whole loop on real images: send, segment, correct, learn, federate (ARGS="--input DIR")
	$(BIN)/dicomnode demo $(ARGS)

.PHONY: test
test: $(STAMP)  ## all tests (ARGS="-k name"); those that need an absent program or data are skipped
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

.PHONY: parity
parity: $(STAMP)  ## the engine against nnU-Net itself, minutes (DICOMNODE_NNUNET=PYTHON, ARGS="-k name")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 --timeout 1800 tests/parity $(ARGS)

.PHONY: check
check: $(STAMP)  ## format, lint, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP)  ## put the code into its format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: $(STAMP)  ## write the generated parts of docs/ anew
	$(BIN)/python docs/generate.py

.PHONY: docs-series
docs-series: $(STAMP)  ## write the table of real series in docs/series.md anew (DICOMNODE_DATA=FOLDER)
	$(BIN)/python docs/series.py

.PHONY: docs-writers
docs-writers: $(STAMP)  ## write the table of other programs' corrections in docs/writers.md anew
	$(BIN)/python docs/writers.py

.PHONY: clean
clean:  ## remove .venv, caches and the output of the demo
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist output *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that no dependency can draw in another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dicomnode needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing torch $(TORCH), then everything else; a few minutes the first time."
	$(BIN)/python -m pip install -qq -c constraints.txt "torch==$(TORCH)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/python -m pip check
	@$(BIN)/python -c 'import torch; v = torch.__version__; assert v.split("+")[0] == "$(TORCH)", f"torch is {v}, wanted $(TORCH)"'
	touch $@
