# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

# A process for every core, each with one thread: threads that share a core make small nets many times slower.
PYTEST := -m pytest -n auto --dist worksteal

ANNOTATION := .venv-annotation
MODELS     := .venv-models
LATEST     := .venv-latest

.PHONY: help demo test test-models test-annotation test-matrix test-runtime-matrix test-latest check docs docs-serve format clean
help:
	@echo "make demo    the whole loop on rendered people: train, export, watch, harvest, annotate, train again (minutes)"
	@echo "make test    the whole test suite"
	@echo "make test-models   installs transformers and ultralytics beside it; watches nets that they, and two of our own, export (half an hour; wants LSP)"
	@echo "make test-annotation   installs Label Studio beside it, and corrects a pose in its page (minutes; wants chromium)"
	@echo "make test-matrix   the runtime's tests on the oldest and newest Python, with the oldest and newest versions;"
	@echo "                   then the whole test suite with the newest versions of everything, which is make test-latest"
	@echo "make check   ruff, mypy, import contracts, and the wheel in a clean environment"
	@echo "make docs    the documentation site, into site/; every warning is an error"
	@echo "make docs-serve   the same at http://127.0.0.1:8000, again after every change"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove what these commands made, caches and runs excepted"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	@# One thread: nets this small gain nothing from a second, and lose much where a core is busy.
	OMP_NUM_THREADS=1 $(BIN)/python -m alpose.tools.demo --out runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Label Studio pins what others need newer: it has an environment of its own.
$(ANNOTATION)/.installed: pyproject.toml
	$(PYTHON) -m venv $(ANNOTATION)
	$(ANNOTATION)/bin/python -m pip install --quiet --disable-pip-version-check -e . \
		label-studio==1.23.2 playwright pytest hypothesis scipy jinja2
	@touch $@

# Libraries that train and export pose nets, each in an environment of its own: ultralytics is AGPL, and no part of alpose needs it.
$(MODELS)/.installed: constraints.txt
	$(PYTHON) -m venv $(MODELS)/transformers
	$(MODELS)/transformers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch transformers scipy pillow onnx
	$(PYTHON) -m venv $(MODELS)/ultralytics
	$(MODELS)/ultralytics/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch numpy scipy pillow pyyaml requests matplotlib psutil polars opencv-python-headless onnx
	@# Without what it depends on: it asks for torchvision, which there may be no build of for this torch.
	$(MODELS)/ultralytics/bin/python -m pip install --quiet --disable-pip-version-check --no-deps ultralytics ultralytics-thop
	@touch $@

test-models: $(READY) $(MODELS)/.installed
	ALPOSE_MODEL_ENVIRONMENTS=$(abspath $(MODELS)) $(BIN)/python -m pytest tests/models -m slow

test-annotation: $(ANNOTATION)/.installed
	$(ANNOTATION)/bin/python -m pytest tests/annotation -m slow

test-matrix: test-runtime-matrix test-latest

test-runtime-matrix: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash .ci/matrix

# New at every call: what a user who installs today gets. Only torch keeps its pin (constraints.txt says why).
test-latest:
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		-c constraints.txt -e ".[dev]"
	$(LATEST)/bin/python -m pip list --format=freeze --disable-pip-version-check
	OMP_NUM_THREADS=1 $(LATEST)/bin/python $(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check-circles
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	BIN=$(BIN) bash .ci/check-wheel

# NO_MKDOCS_2_WARNING silences the theme's word about its successor.
docs: $(READY)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(ANNOTATION) $(MODELS) $(LATEST) dist build site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
