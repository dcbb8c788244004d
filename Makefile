# Targets of panoptic_ext; `make help` lists them. Each installs what it needs into .venv first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO := output/demo
PYTEST_ARGS ?=
# Two processes with one thread each, for two cores. The tests of a file run in one process, and the
# files in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo docs test test-main check format lint clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=... chooses the Python of .venv (3.10 to 3.13), PYTEST_ARGS=... goes to pytest,"
	@echo "  WORKERS=... is the number of its processes (2; 0 for one with a debugger)"

install: $(STAMP) ## create .venv with torch, Detectron2 and this package

# The stamp holds the folder of the checkout. A .venv that was copied or moved with its checkout
# still refers to the old folder, so it is installed again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(shell rm -f $(STAMP))
endif

# Runs again only when a file that determines what is installed has changed.
$(STAMP): setup.py tools/install.sh tools/install_detectron2.py $(wildcard tools/detectron2_patches/*.py)
	@tools/install.sh $(VENV)
	@echo $(CURDIR) >$@

# MODEL counts only behind `make`: shells may export a variable of this name for something else. A
# wrong one is an error before the installation, which takes minutes.
MODELS := mask2former efficientps panoptic_fpn
MODEL_OPTION :=
ifneq ($(MODEL),)
  ifeq ($(origin MODEL),command line)
    ifeq ($(filter $(MODELS),$(MODEL)),)
      $(error unknown model MODEL=$(MODEL); known: $(MODELS))
    endif
    MODEL_OPTION := --model $(MODEL)
  else ifneq ($(filter demo,$(MAKECMDGOALS)),)
    $(info [demo] the environment variable MODEL ($(MODEL)) is not read; make demo MODEL=... chooses a model)
  endif
endif

demo: $(STAMP) ## train on generated shapes, evaluate, draw (MODEL=efficientps, panoptic_fpn: others)
	@$(VENV_PYTHON) tools/demo.py $(MODEL_OPTION)

docs: $(STAMP) ## build the site of docs/ into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict
	@echo "site/index.html; with its search: python3 -m http.server -d site"

test: $(STAMP) ## lint, types and all tests, the slow ones too
	@PYTHON=$(VENV_PYTHON) tools/check.sh
	@$(PYTEST) $(PYTEST_ARGS)

check: $(STAMP) ## lint, types and the quick tests
	@PYTHON=$(VENV_PYTHON) tools/check.sh
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-main: $(STAMP) ## the quick tests with Detectron2 main: DETECTRON2=<folder of a clone of it>
	@tools/test_with_detectron2_main.sh --base $(VENV_PYTHON) "$(DETECTRON2)" -- -m "not slow" $(PYTEST_ARGS)

lint: $(STAMP) ## lint, format check and types
	@PYTHON=$(VENV_PYTHON) tools/check.sh

format: $(STAMP) ## mend the formatting and what lint can mend
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

clean: ## remove caches, build files and the demo's output
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO)
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)
