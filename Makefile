# Two commands: make demo, make test. Both do all the set-up that a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check quick prove mutants bench schemas clean

help:                     ## what there is
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 16

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bayesd needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --editable '.[daemon,bench]' --group dev
	@touch $@

demo: .venv/.ready        ## tune a real model: daemon, broker, workers, two kills, a winner, a proof
	$(BIN)/bayesd demo

test: .venv/.ready check  ## the whole suite, linters and types included
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: .venv/.ready       ## linters, types, layers
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/.ready       ## the fast tests alone
	$(BIN)/python -m pytest -m 'not slow and not mosquitto' -q

prove: .venv/.ready       ## try to break every promise as often as a release wants; goes on where it was stopped
	$(BIN)/python tests/promises/prove.py $(ARGS)

mutants: .venv/.ready     ## planted faults, each of which must be caught
	$(BIN)/python tests/simulation/mutants.py
	$(BIN)/python tests/promises/prove.py --faults

bench: .venv/.ready       ## throughput beside a floor and a peer, replay, memory
	$(BIN)/python tests/bench/run.py

.PHONY: bench-quality
bench-quality: .venv/.ready     ## quality of the points beside random search and the peers installed; options in ARGS
	$(BIN)/python tests/bench/quality/run.py $(ARGS)

.PHONY: bench-priors
bench-priors: .venv/.ready     ## what a prior is worth when it is right, and costs when it is wrong; options in ARGS
	$(BIN)/python tests/bench/priors.py $(ARGS)

schemas: .venv/.ready     ## write schemas/json again
	$(BIN)/python -m bayesd_schemas.generate schemas/json

clean:                    ## remove what make made
	rm -rf .venv bayesd-demo
