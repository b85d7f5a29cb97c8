# make demo    generate synthetic hearts, train two models, compare them, draw overlays
# make test    run the fast tests        make test-all   also the slow ones and the real cases
# make check   lint, format, types and import layers
# make docs    build the documentation site into site/
# make bench   measure the speed beside plain PyTorch code (15 minutes on two cores)
# Each target installs what it needs into $(VENV); the first one downloads PyTorch.

# The first of these that is Python 3.11 to 3.13.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && \
	echo $$python && break; done)
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
CRKD   := $(BIN)/crkd
RUN    := $(BIN)/python -m
DEMO   := .demo

.PHONY: demo test test-all check docs bench clean

demo: $(VENV)/.installed
	@rm -rf $(DEMO) && mkdir -p $(DEMO)/scans
	$(call step, prepare-data phantom)
	$(call step, make-splits phantom --labeled 3)
	$(call step, train --dataset phantom --labeled 3 --method supervised)
	$(call step, train --dataset phantom --labeled 3 --method crkd)
	$(call step, evaluate runs/phantom-supervised-3/best.pth)
	$(call step, evaluate runs/phantom-crkd-3/best.pth)
	@cp $(DEMO_SCANS:%=$(DEMO)/data/raw/phantom/images/%.nii) $(DEMO)/scans
	$(call step, predict scans --checkpoint runs/phantom-crkd-3/best.pth --overlay)
	$(call step, compare runs/phantom-supervised-3 runs/phantom-crkd-3)
	@echo "This was a demonstration on synthetic hearts. Overlays: $(DEMO)/scans-masks/overlays"

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) pytest -q -n auto --dist loadfile

test-all: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not gpu"

check: $(VENV)/.installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -q tests/test_architecture.py

# Without --quiet, which also hides warnings from --strict.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-bench
	$(RUN) benchmarks.speed
	$(RUN) benchmarks.performance_page

clean:
	rm -rf $(DEMO) build dist site

# Test cases of the split above.
DEMO_SCANS := heart002 heart009 heart015

define step
	@echo "\n\$$ crkd$(1)" && cd $(DEMO) && $(CRKD)$(1)
endef

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.13 is needed; give its path: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(RUN) pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) pip install --quiet -c constraints.txt --group dev
	@touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(RUN) pip install --quiet -c constraints.txt --group docs
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(RUN) pip install --quiet -c constraints.txt --group bench
	@touch $@
