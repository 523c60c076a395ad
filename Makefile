# VENV may point elsewhere, for instance into a cache that outlives the checkout.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: setup demo test lint format bench clean
setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[tasks,dev]"
	touch $@

demo: $(READY)
	$(LAUNCH) -m recipes.train_images
	$(BIN)/python -m recipes.classify runs/digits docs/digit.png --top 3
	$(LAUNCH) -m recipes.train_translation
	$(BIN)/python -m recipes.translate runs/demo --text "The meeting is on March 3, 2027 at 4:30 PM."

# Two files at a time, in the order of their names, which spreads the long ones.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speed beside other libraries, 20 minutes; writes the section of benchmarks/RESULTS.md.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info
