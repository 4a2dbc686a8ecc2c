# Everything a person runs here. `make help` lists it.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
ARGS ?=

# One for each user: root's cache in somebody's checkout must not stop its owner.
CACHE := .cache-$(shell id -u)
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy

.DEFAULT_GOAL := help
.PHONY: help demo test check bench dashboards venv lint types contracts lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PYTHON=… picks the interpreter (3.11 or newer), VENV=… the environment, ARGS=… goes to the demo or to pytest'

demo: $(VENV)/.demo-installed ## the whole story on an embedded PostgreSQL, live in the terminal
	@$(BIN)/rollbackd demo $(ARGS)

# Tests that share something costly name an xdist_group, and so one process makes it once.
XDIST := -n 2 --dist loadgroup

# pytest comes last, so that its closing line is the last line.
test: lint types contracts ## everything that must hold: lint, types, contracts and all tests
	@$(BIN)/python -m pytest $(XDIST) $(ARGS)

check: lint types contracts ## what a person runs before each commit: the same without the slow tests
	@$(BIN)/python -m pytest $(XDIST) -m 'not slow' $(ARGS)

bench: venv ## measure what the budgets promise
	@$(BIN)/python tests/bench/run.py

dashboards: venv ## write grafana/dashboards/ anew from grafana/dashboards.py
	@$(BIN)/python grafana/dashboards.py

venv: $(VENV)/.dev-installed ## the virtual environment, with all that testing needs

lint: venv ## ruff: rules and format
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo 'not formatted as agreed; mend with: $(BIN)/ruff format' >&2; exit 1; }

types: venv ## mypy --strict
	@$(BIN)/mypy --no-error-summary

contracts: venv ## import-linter: who may import whom
	@said=$$($(BIN)/lint-imports --cache-dir $(CACHE)/contracts 2>&1) || { printf '%s\n' "$$said" >&2; exit 1; }

lock: ## resolve requirements.lock anew from pyproject.toml
	@$(ENTER) $(PICK_PYTHON) \
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	"$$python" -m venv "$$scratch" && \
	"$$scratch/bin/python" -m pip install -q --disable-pip-version-check '.[dev]' && \
	{ sed -n '/^#/p' requirements.lock; \
	  "$$scratch/bin/python" -m pip freeze | sed -n '/^[A-Za-z0-9._-]*==/p' | LC_ALL=C sort -f; \
	} > "$$scratch/lock" && cat "$$scratch/lock" > requirements.lock

clean: ## remove all that was made here
	@rm -rf $(VENV) .cache-* .pytest_cache .hypothesis build dist
	@find daemon grafana tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The virtual environment -----------------------------------------------------------------------------------------

# Modes don't depend on who made it (the embedded PostgreSQL runs as another user when we are root), and two makes at
# once take turns; the lock is on this very file, so that none is left behind.
ENTER = set -eu; umask 022; unset PYTHONHOME PYTHONPATH; \
	if command -v flock >/dev/null; then exec 9< '$(firstword $(MAKEFILE_LIST))'; \
	flock -w 900 9 || { echo 'another make has been at work on $(VENV) for 15 minutes; giving up' >&2; exit 1; }; fi;

# The first candidate that runs, is new enough and can make virtual environments.
PICK_PYTHON = python=; why=; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3.11 python3); do \
	  if ! version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then \
	    why="$$why; $$candidate is not there or does not run"; \
	  elif ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    why="$$why; $$candidate is $$version"; \
	  elif ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then \
	    why="$$why; $$candidate lacks venv or ensurepip (Debian, Ubuntu: apt-get install python$$version-venv)"; \
	  else python=$$candidate; break; fi; \
	done; \
	[ -n "$$python" ] || { echo "rollbackd needs Python 3.11 or newer with venv and ensurepip$$why." \
	  'Install one, or name one: make PYTHON=/path/to/python3.11' >&2; exit 1; };

# $(1): the extras; $(2): the stamps that then hold. The environment is made anew where there is none that runs here:
# its interpreter is gone or another user's, or the checkout was copied or moved (it holds absolute paths).
INSTALL = $(ENTER) \
	[ ! -e $(VENV) ] || [ -w $(VENV) ] || { echo "$(VENV) was made by another user and can't be used or renewed by this" \
	  'one: remove it, or make VENV=/some/folder/of/yours, or use a checkout of your own' >&2; exit 1; }; \
	if [ "$$($(BIN)/python -c '' 2>/dev/null && cat $(VENV)/.made-in)" != '$(CURDIR)' ]; then \
	  $(PICK_PYTHON) \
	  echo "making $(VENV) with $$python ($(1)) ..." >&2; \
	  "$$python" -m venv --clear $(VENV); echo '$(CURDIR)' > $(VENV)/.made-in; \
	fi; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock -e '.[$(1)]'; \
	touch $(2)

SOURCES_OF_VENV := pyproject.toml requirements.lock

$(VENV)/.dev-installed: $(SOURCES_OF_VENV)
	@$(call INSTALL,dev,$(VENV)/.demo-installed $(VENV)/.dev-installed)

$(VENV)/.demo-installed: $(SOURCES_OF_VENV)
	@$(call INSTALL,demo,$(VENV)/.demo-installed)

ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat $(VENV)/.made-in 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/.dev-installed $(VENV)/.demo-installed
endif
