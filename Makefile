# Every target sets up ./.venv first, once; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The interpreter that makes the virtual environment: 3.11 where there is one, else python3.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
# Index to take PyTorch from, e.g. its CPU-only one; empty: wherever pip looks anyway.
TORCH_INDEX ?=
# `make demo REMOTE=1` (or REMOTE=grpc) solves on a server of its own instead of in the process.
REMOTE ?=
# Further arguments of the demo, the tests and the benchmark: make test ARGS="-k pattern"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

# The checks of `lint`; an included file may add its own.
CHECKS := check-style check-types check-layers check-proto check-files

-include deploy/containers.mk

.PHONY: help setup demo serve test test-gpu test-matrix lint bench bench-gpu loadtest locust $(CHECKS)

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make ./.venv with everything pinned in constraints.txt

# PyTorch comes first and alone, so that TORCH_INDEX names the source of nothing else.
$(READY): constraints.txt requirements-dev.txt client/pyproject.toml service/pyproject.toml
	@echo "set-up 1/3: $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
	@echo "set-up 2/3: $(TORCH), the largest download"
	@$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt $(TORCH)
	@echo "set-up 3/3: both distributions, test tools and what they need"
	@$(PIP) install -qq -c constraints.txt -r requirements-dev.txt -e './client[torch]' -e ./service
	@touch $@

demo: $(READY)  ## learn a conductivity through the solver, in this process or with REMOTE=1 on a server
	@$(if $(REMOTE),$(BIN)/python -m scripts.remote_demo --transport $(if $(filter grpc,$(REMOTE)),grpc,http),$(BIN)/python examples/heat_inverse.py --losses out/losses.json) $(ARGS)

serve: $(READY)  ## run the service on 127.0.0.1:8080 (REST) and :50051 (gRPC) until Ctrl-C
	@exec $(BIN)/backsolve-service

test: $(READY) lint  ## run all checks, then all tests
	@$(BIN)/python scripts/run_tests.py $(ARGS)

test-gpu: $(READY)  ## run the tests that need a CUDA device; without one they are skipped, and say so
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu -ra $(ARGS)

test-matrix: $(READY)  ## run a part of the tests with the oldest and the newest versions declared; downloads them
	@$(BIN)/python scripts/test_matrix.py $(ARGS)

lint: $(CHECKS)  ## style, types, layers, proto, list of files

check-style: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

check-types: $(READY)
	@$(BIN)/mypy -n 2 --no-error-summary

check-layers: $(READY)
	@$(BIN)/lint-imports --no-logo > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }

check-proto: $(READY)
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

check-files: $(READY)
	@$(BIN)/python scripts/architecture_tree.py --check

# These two variables change which kernels OpenBLAS picks; a timing must not depend on who set them.
bench: $(READY)  ## time the engine, remote solves, training steps, transports and a server's limits beside references; writes out/*.json and .png
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.engine $(ARGS)
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.micro
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.training
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.transports --targets
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.limits

bench-gpu: $(READY)  ## time solves on a CUDA device beside the speed of its memory; without one, say so
	@$(BIN)/python -m loadtests.gpu $(ARGS)

loadtest: $(READY)  ## put load on a server of its own, all scenarios in short, and picture it; about 3 minutes
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.served $(ARGS)

$(VENV)/.locust: loadtests/requirements-locust.txt $(READY)
	@$(PIP) install -qq -c constraints.txt -r $<
	@touch $@

locust: $(VENV)/.locust  ## load on a server of its own, or on ARGS="--host http://...", watched at http://127.0.0.1:8089
	@OMP_NUM_THREADS=1 $(BIN)/python -m locust -f loadtests/locustfile.py --web-host 127.0.0.1 $(ARGS)
