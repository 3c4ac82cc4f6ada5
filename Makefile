# The project's commands. `make help` lists them; each target installs what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed
LOOP_ARGS ?=
BACKEND ?= local
ONLY ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
PEERS := .peers
LEARNING_ARGS ?=
SABOTAGE_ARGS ?=
PROBATION_ARGS ?=
CHURN_ARGS ?=
# The environment is read afresh, as the reference is made from code that Sphinx does not watch.
BUILD_DOCS := $(BIN)/python -m sphinx --fail-on-warning --fresh-env --quiet -c docs . site

.PHONY: help install loop test check docs format lock bench bench-learning bench-live coverage churn sabotage probation sabotage-processes clean live-watch live-watch-processes live-kills

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Create .venv from the locked requirements

# Bytecode is compiled here once: TensorFlow and Beam import in a third of the time with it.
$(INSTALLED): requirements/dev.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name one with make PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else f"Python 3.11 is needed, got {sys.version.split()[0]}: name one with make PYTHON=…")'
	@echo "Installing the locked requirements into $(VENV) (3.8 GB, once) …"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements/dev.txt
	@touch $@

loop: $(INSTALLED) ## Run the closed loop (LOOP_ARGS="--windows 3 --seed 7 …"; BACKEND=emulators for Pub/Sub and BigQuery)
ifeq ($(BACKEND),emulators)
	$(BIN)/python -m orchestration.emulators install
endif
	$(BIN)/python -m orchestration.cli loop --backend $(BACKEND) $(LOOP_ARGS)

test: $(INSTALLED) ## Run the tests (PYTEST_ARGS="-k …"; PYTEST_WORKERS=0 for one process)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(INSTALLED) ## Lint, types, import rules, generated files, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m beam_jobs.templates templates --check
	$(BIN)/python -m beam_jobs.table_schemas infra/tables --check
	$(BUILD_DOCS)

docs: $(INSTALLED) ## Build the documentation into site/
	$(BUILD_DOCS)
	@echo "Documentation: site/index.html"

format: $(INSTALLED) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## Measure against the reference ways (ONLY=<name> runs one)
	$(BIN)/python -m bench $(ONLY)

# The peers need other versions of packages, so they run in a separate environment, with bench/episode.py and
# bench/peers.py as the only code of the project.
$(PEERS)/.installed: requirements/bench.txt $(INSTALLED)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	VIRTUAL_ENV=$(CURDIR)/$(PEERS) $(BIN)/uv pip sync --quiet --require-hashes requirements/bench.txt
	@touch $@

churn: $(INSTALLED) ## Replace 5% of 2,000 items every window for 50 windows, beside the same loop without churn (CHURN_ARGS="--windows 10 …")
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.churn $(CHURN_ARGS)

probation: $(INSTALLED) ## Watch candidates whose true gain is known, and see what caution costs (PROBATION_ARGS="--seeds 5 …")
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.probation $(PROBATION_ARGS)

sabotage: $(INSTALLED) ## Make the log wrong in every way that is known, and see the guard notice (SABOTAGE_ARGS="--seeds 3 …")
	$(BIN)/python -m bench.sabotage $(SABOTAGE_ARGS)

sabotage-processes: $(INSTALLED) ## The same through the real processes (45 minutes; SABOTAGE_ARGS="--only 'rewards permuted' …")
	$(BIN)/python -m bench.sabotage --processes $(SABOTAGE_ARGS)

bench-learning: $(PEERS)/.installed ## Learn beside mabwiser and VowpalWabbit (LEARNING_ARGS="--ratings FOLDER --seeds 2 …")
	$(BIN)/python -m bench.learning --peers-python $(PEERS)/bin/python $(LEARNING_ARGS)

bench-live: $(INSTALLED) ## Measure live learning beside windows (LIVE_ARGS="--only freshness --seeds 1 …"; all takes an hour)
	$(BIN)/python -m bench.live $(LIVE_ARGS)

live-watch: $(INSTALLED) ## Plant faults in live learning, and see the watch notice (LIVE_WATCH_ARGS="--seeds 3 …")
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.live_watch $(LIVE_WATCH_ARGS)

live-watch-processes: $(INSTALLED) ## The same through the real processes (15 minutes; LIVE_WATCH_ARGS="--seeds 1 …")
	$(BIN)/python -m bench.live_watch_processes $(LIVE_WATCH_ARGS)

live-kills: $(INSTALLED) ## Kill the processes of live learning at random (half an hour; LIVE_KILLS_ARGS="--kills 3 --only job")
	$(BIN)/python -m bench.live_kills $(LIVE_KILLS_ARGS)

coverage: $(INSTALLED) ## Measure whether the intervals of off-policy estimates hold (15 minutes on 2 cores)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.coverage

.PHONY: forgetting
forgetting: $(INSTALLED) ## Compare the half-life that is chosen at each window with those typed in (a minute)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.forgetting

lock: $(INSTALLED) ## Resolve the requirements anew
	$(BIN)/uv pip compile --quiet setup.py --extra dev --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" -o requirements/dev.txt
	for part in beam trainer predictor; do \
	  extras="--extra $$part"; if [ $$part = beam ]; then extras+=" --extra tfds"; fi; \
	  $(BIN)/uv pip compile --quiet setup.py $$extras --constraint requirements/dev.txt --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" -o requirements/$$part.txt; \
	done
	for part in bench emulators; do \
	  $(BIN)/uv pip compile --quiet requirements/$$part.in --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" -o requirements/$$part.txt; \
	done

clean: ## Remove what runs and tools left
	rm -rf runs site .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
