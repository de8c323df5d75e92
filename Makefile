# Everything one does with this book. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
STAMP := $(VENV)/.ready
# uv where it has a build, three times as fast as pip; it is pinned in the lock like all others.
INSTALL := $(BIN)/python tools/install.py
# What the environment says to Python, pytest and the like does not count here: to drop asserts, to take
# packages from elsewhere, to compile torch anew in each process. PYTEST_ADDOPTS is said on purpose.
FOREIGN := $(filter PYTHON% PYTEST_% TQDM_%,$(.VARIABLES)) JUPYTER_PATH MATPLOTLIBRC MPLBACKEND MYPYPATH
unexport $(filter-out PYTHONUNBUFFERED PYTEST_ADDOPTS,$(FOREIGN))
export PYTHONUTF8 := 1
# Compiled once, out of the tree: uv leaves that to the first import, which takes torch seconds.
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/.bytecode
# What mypy finds out about torch is kept there, too: it takes 15 s.
export MYPY_CACHE_DIR := $(CURDIR)/$(VENV)/.mypy
# Nor do the reader's own settings, with which figures look different and cells show more.
export IPYTHONDIR := $(CURDIR)/$(VENV)/.ipython
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/.matplotlib
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help setup book pdf test lab execute index benchmark measure full mutants lint format lock clean
.DEFAULT_GOAL := help
# What is installed knows where it stands: a clone that was moved or copied is set up anew, and so is
# one whose Python has gone, as after an upgrade of the system.
ifneq "$(shell test -x $(BIN)/python && cat $(PACKAGES) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(PACKAGES)
endif

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Prepare .venv with the pinned packages

$(PACKAGES): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This book needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) requirements.lock
	@pwd -P > $@

$(STAMP): $(PACKAGES) pyproject.toml
	@$(INSTALL) --package .
	@$(BIN)/python -c 'import matplotlib.font_manager'  # lists fonts; a chapter would tell of it
	@touch $@

book: $(STAMP) ## Run the chapters on this machine and build the site into _build/html
	$(if $(filter-out exercises,$(EDITION)),$(error EDITION is "$(EDITION)"; the only one there is is "exercises"))
	@$(BIN)/python tools/book.py build $(if $(filter exercises,$(EDITION)),--without-solutions)

pdf: book ## Print the whole book into _build/vae-book.pdf (with a Chromium or Chrome)
	@$(BIN)/python tools/pdf.py

# What killed processes and torch leave behind goes with the folder of this run.
test: $(STAMP) ## Check style and types, run the unit tests, every chapter and the site checks
	@TMPDIR=$$(mktemp -d 2>/dev/null || TMPDIR=/tmp mktemp -d) && export TMPDIR && trap 'rm -rf "$$TMPDIR"' EXIT && trap 'exit 130' INT TERM && \
	  $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## Check style and types
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy

format: $(STAMP) ## Format code and chapters
	@$(BIN)/ruff check --no-cache --fix .
	@$(BIN)/ruff format --no-cache .

lab: $(STAMP) ## Open the chapters in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=book $(LAB_FLAGS)

execute: $(STAMP) ## Run the chapters in place; refresh outputs, captions and alt texts
	@$(BIN)/python tools/book.py execute
	@$(BIN)/python tools/full.py --page
	@$(BIN)/python tools/ledger.py

index: $(STAMP) ## Write the index of equations from chapters, docstrings and tests
	@$(BIN)/python tools/equations.py
	@$(BIN)/python tools/full.py --page
	@$(BIN)/python tools/ledger.py

benchmark: $(STAMP) ## Measure the speed of training and of log p(x), and how the cost of training grows
	@$(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/log_likelihood.py
	@$(BIN)/python benchmarks/growth.py

measure: $(STAMP) ## Measure the full-size results that chapters print (needs full MNIST)
	@$(BIN)/python tools/measure.py

full: $(STAMP) ## Run the chapters on full MNIST and write down what they print (needs full MNIST)
	@$(BIN)/python tools/full.py

mutants: $(STAMP) ## Break the package in known ways and see the tests notice
	@$(BIN)/python tools/mutants.py

# A later jsonschema builds grammars at import: a second in each process that reads a notebook.
lock: $(STAMP) ## Pin the whole tree of packages anew in requirements.lock
	@echo 'jsonschema<4.25' | $(BIN)/uv pip compile pyproject.toml --extra book --constraint - \
	  --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
	  --output-file requirements.lock --quiet $(LOCK_FLAGS)

clean: ## Remove what the targets above have made
	rm -rf $(VENV) _build runs
