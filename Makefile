# Fresh machine with Python 3.11+ and make: `make run`, `make test`.
# GPU users: `make run TORCH=torch` (or any torch >= 2.11), or point VENV at an environment that has torch.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
RUNS   ?= runs
# Test processes: each imports torch (about 0.5 GiB), files stay whole so that their fixtures are built once.
TESTERS ?= 2
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: setup run test check proof clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[downstream,dev]"
	touch $@

run: setup
	$(BIN)/python scripts/demo.py runs=$(RUNS)

test: setup
	$(BIN)/python -m pytest -q -n $(TESTERS) --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

proof: setup
	$(BIN)/python -m pytest -q -m proof

clean:
	rm -rf $(RUNS) build dist *.egg-info
