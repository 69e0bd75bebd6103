# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: help demo test check format clean
help:
	@echo "make demo    train, select and report on the embedded synthetic dataset (a few minutes)"
	@echo "make test    the whole test suite"
	@echo "make check   ruff, mypy, import contracts, and the wheel in a clean environment"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove what these commands made, caches and runs excepted"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	@# One thread: nets this small gain nothing from a second, and lose much where a core is busy.
	OMP_NUM_THREADS=1 $(BIN)/alpose-train cycles --dataset synthetic --preset demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	BIN=$(BIN) bash .ci/check-wheel

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
