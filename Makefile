# What to type. `make demo` and `make test` do their own set-up; nothing here needs an account or a GPU.
#
#   make demo     train a small reasoning model on this machine (7 minutes), report in out/demo/report.html
#   make test     every test            make check    lint, types, fast tests, size of the core (what to run before a commit)
#   make bench    our benchmarks        make gpu      every GPU test and benchmark, results in bench-results/gpu
#   make matrix   every layout in 2 and 4 processes against one (the table of docs/scaling.md), kills, hangs: minutes
#   make docs     check the links       make clean    remove what can be made again (not .venv, not out/)
#
# On Linux the default wheel of torch brings CUDA's libraries (gigabytes). Where only the CPU will be used:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
TORCH_INDEX ?=
CONSTRAINTS ?= constraints-cpu.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
KERNELS := $(VENV)/.kernels

.PHONY: setup demo test check bench docs clean gpu matrix

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "sobre needs Python 3.11 or newer; name one: make setup PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -z "$(TORCH_INDEX)" || $(PIP) install -q -c $(CONSTRAINTS) --index-url "$(TORCH_INDEX)" torch
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# triton, a gigabyte: the tests alone need it, to run its kernels under its interpreter
$(KERNELS): $(READY)
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[dev,kernels]'
	@touch $@

demo: $(READY)
	$(BIN)/sobre run demo

# two at a time, a file by one worker: its tests share what they start; in order, since the long files come first
test: $(KERNELS)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"
	$(BIN)/python scripts/closure.py

bench: $(READY)
	$(BIN)/sobre bench all

matrix: $(READY)
	$(BIN)/python scripts/matrix.py
	SOBRE_MATRIX=1 $(BIN)/python -m pytest -q tests/distributed

docs: $(READY)
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache bench-results
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# No network and no set-up: this uses the torch that the machine has, and wheels from $(WHEELS) when that is set.
gpu:
	$(PYTHON) scripts/gpu.py --out bench-results/gpu $(if $(WHEELS),--wheels "$(WHEELS)")
