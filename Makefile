# Every target sets up .venv by itself: `make demo` and `make test` need only Python 3.11 and the package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo study test soak check types format bench gpu wheel docs clean

demo: $(READY)
	$(BIN)/t5-pipeline run recipes/demo.yaml

# The paper's experiments on small T5s: about 80 minutes on two cores.
study: $(READY)
	$(BIN)/t5-pipeline run recipes/study.yaml

# Three workers for two cores: a test often waits for the processes that it has started.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The tests that `make test` leaves out: the other pairs of engine and stage, and a hundred kills. About half an hour.
soak: $(READY)
	$(BIN)/python -m pytest -m "engines or soak" --durations=0

check: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' mapping of folders to packages: give it the installed layout as links.
types: $(READY)
	rm -rf $(VENV)/layout && mkdir -p $(VENV)/layout/t5_pipeline
	ln -s $(CURDIR)/pipeline/* $(CURDIR)/data_prep $(CURDIR)/stages $(VENV)/layout/t5_pipeline/
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks

# On a machine with a GPU: its tests and benchmarks in ten minutes, in whatever environment there is, offline.
gpu:
	benchmarks/gpu.sh

# dist/*.whl, then the demo from it in an empty environment. setuptools adds old files of build/ to a wheel.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	T5_PIPELINE_WHEEL=$$(echo $(CURDIR)/dist/*.whl) $(BIN)/python -m pytest tests/system/test_wheel.py

# The documentation as a site, with all links checked.
docs: $(READY)
	$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis

# torch first and in its pinned version: a bare `torch` may download gigabytes of CUDA that a CPU does not need. The pip that
# comes with Python 3.11 takes three times as long to resolve the dependencies, hence its update. Compiling all packages
# would take longer than installing them; Python compiles what it imports, if nothing forbids it. New versions of pip print
# setuptools' warning on editable installations even if they are quiet.
unexport PYTHONDONTWRITEBYTECODE
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "t5-pipeline needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) torch
	$(PIP) -e '.[dev]'
	touch $@
