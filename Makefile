# Two commands: `make quickstart` runs a real study from nothing to a report, `make test` proves the tree.

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The first interpreter that runs and is new enough; `make PYTHON=…` overrides it.
PYTHON = $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# A study's directory is never overwritten, so each quickstart gets its own.
RESULTS ?= out/$(shell date +%Y%m%d-%H%M%S)

.PHONY: help quickstart test check format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

quickstart: $(INSTALLED)  ## run studies/quickstart.yaml: search, baselines, comparison, report
	$(BIN)/fat-ray launch studies/quickstart.yaml --out $(RESULTS)

test: check  ## check, then all tests, the cheapest first
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## style, types and import contracts, in under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## put the tree into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and build products; results in out/ and the .venv stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find fat_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: everything after it must fit it, never the other way round.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fat_ray needs Python 3.11 or newer: install it, or give PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[weights,dev,lora,huggingface,lightning,workspaces]"
	@touch $@
