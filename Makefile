# The targets use .venv, which is made from the hash-locked requirements. Only `lock` needs another program, uv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types contracts unit config lock bench chaos clean

help: ## show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv with the engine and all tools

$(STAMP): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@echo 'Installing the engine and its tools from PyPI into $(VENV). This happens once and takes about a minute.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP) ## run the engine with simulated agents on a bundled server
	$(BIN)/aism-engine dev $(ARGS)

test: lint types contracts unit ## run the whole gate: lint, types, import contracts, tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# Most tests wait for a server or a process, so that two workers per CPU are faster than one.
WORKERS = $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))
unit: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

config: $(STAMP) ## generate config/engine.toml from the settings
	$(BIN)/python -c 'from aism_engine.config import render_reference; print(render_reference(), end="")' > config/engine.toml

lock: ## resolve the dependencies again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' pyproject.toml -o requirements/run.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --constraints requirements/run.lock --extra embedded --group dev --group build pyproject.toml -o requirements/dev.lock

chaos: $(STAMP) ## kill engines, servers and connections by a seeded schedule, and check that nothing is lost (ARGS="--trials 300 --seed 1")
	$(BIN)/python -m tests.chaos $(ARGS)

bench: $(STAMP) ## run the benchmarks and print one table (BENCH=responses,latency for a part; ARGS="--quick --runs 1 --json FILE")
	$(BIN)/python -m bench $(if $(BENCH),--only $(BENCH)) $(ARGS)

clean: ## remove everything that make created
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
