# Everything here works in a fresh clone with Python 3.11 or newer and nothing else.
#   ARGS   passed on: make serve ARGS="--port 9000", make test ARGS="-k scheduling"
#   PYTHON the interpreter that makes .venv

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve test test-faults check format lock bench bench-limits bench-cache bench-swap bench-fair image image-smoke audit clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup:  ## make .venv with the server and its engine
	@$(PYTHON) requirements/bootstrap.py

setup-dev:  ## the same, with the tools for testing and linting
	@$(PYTHON) requirements/bootstrap.py --dev

serve: setup  ## set up, then run the server
	@exec $(BIN)/headrace serve $(ARGS)

test: setup-dev  ## set up, then run the tests
	$(BIN)/python -m pytest tests $(ARGS)

check: setup-dev  ## formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev  ## format and fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: setup-dev  ## renew requirements/*.txt
	$(BIN)/python -m requirements.lock $(ARGS)

bench: setup-dev  ## measure the server
	$(BIN)/python loadtests/bench_server.py $(ARGS)

test-faults: setup-dev  ## kill servers, engines and what writes models, at any moment, hundreds of times
	FAULT_KILLS=500 FAULT_SIGTERMS=200 FAULT_MATRIX=1 $(BIN)/python -m pytest tests/faults --timeout 3000 $(ARGS)

bench-limits: setup-dev  ## measure what a crowd and thousands of requests do to the server
	$(BIN)/python loadtests/bench_limits.py $(ARGS)

bench-cache: setup-dev  ## measure the model cache, beside other loaders
	$(BIN)/python loadtests/bench_cache.py $(ARGS)

bench-swap: setup-dev  ## measure starts, swaps and restarts of engines, beside vLLM's own server
	$(BIN)/python loadtests/bench_swap.py $(ARGS)

bench-fair: setup-dev  ## measure who waits how long under load, beside first come, first served and vLLM's own server
	$(BIN)/python loadtests/bench_fair.py $(ARGS)

image:  ## build the container image, with Docker or else buildah (as root)
	$(PYTHON) -m docker.build $(ARGS)

image-smoke: setup-dev  ## run the image that `make image` built with buildah, in containers (as root), and measure it
	IMAGE_SMOKE=1 $(BIN)/python -m pytest tests/image $(ARGS)

audit: setup-dev  ## look for locked packages with known vulnerabilities
	$(BIN)/python -m requirements.audit $(ARGS)

clean:  ## remove .venv, caches and build outputs
	rm -rf .venv .venv.lock .peers .peers-* .tools build dist htmlcov .coverage .coverage.* .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find server models tests loadtests requirements -type d -name __pycache__ -prune -exec rm -rf {} +
