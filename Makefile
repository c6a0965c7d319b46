# Every target makes the environment it needs: `make demo` and `make test` are all that a new machine takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-all lint format lock clean

demo: $(READY)  ## the main job on the embedded default, from recordings to scores
	$(BIN)/python main.py --config=experiments/demo.py --workdir=runs/demo

# A process a core, four at most; a file's tests stay together, as they share what they prepare.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(READY)  ## the tests, some minutes
	$(PYTEST)

test-all: $(READY)  ## the long ones too
	$(PYTEST) -m ""

lint: $(READY)  ## linter and formatter check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## pin anew what pyproject.toml allows, for every platform
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade pyproject.toml --extra test -o requirements.lock

clean:  ## remove the environment, not the runs
	rm -rf $(VENV) build dist *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)
