# The first two lines of work: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3.11
EXTRA  ?= cpu
BIN    := .venv/bin
ROOMS  := cluster validation jobs deployments tests
# Two processes, each with whole files, so that what a module's fixtures start is started once.
SIDE_BY_SIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint types manifests format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make the environment only (EXTRA=gpu: CUDA; EXTRA=client: to submit); repeating it takes a second
	@$(PYTHON) cluster/setup_environment.py $(EXTRA)

demo: setup ## Run the whole life of a model on this machine, and write the report
	@$(BIN)/manta demo

# First the tests without Ray. Then one process has those with a small Ray in it, and another, which nothing
# of that Ray reaches, those of whole clusters: two Rays at once are much for two cores. All run, whatever fails.
test: setup ## Run all tests, with real parts
	@failed=0; \
	$(BIN)/python -m pytest -m "not ray and not cluster" $(SIDE_BY_SIDE) || failed=1; \
	$(BIN)/python -m pytest -m "ray and not cluster" || failed=1; \
	$(BIN)/python -m pytest -m cluster || failed=1; \
	exit $$failed

test-fast: setup ## Run only the tests that need no Ray and no engine
	$(BIN)/python -m pytest -m "not integration and not slow" $(SIDE_BY_SIDE)

lint: setup ## Check style and the import rule between rooms
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/ruff format --check $(ROOMS)
	$(BIN)/lint-imports

types: setup ## Check types
	$(BIN)/mypy

manifests: setup ## Check the cluster definitions, the image's recipe and the workflows only
	$(BIN)/python -m pytest tests/unit/manifests

format: setup ## Format the code
	$(BIN)/ruff check --fix $(ROOMS)
	$(BIN)/ruff format $(ROOMS)

lock: setup ## Resolve all locks anew from pyproject.toml
	@$(PYTHON) cluster/setup_environment.py --lock

clean: ## Remove the environment (not the data under MANTA_HOME)
	rm -rf .venv .setup
