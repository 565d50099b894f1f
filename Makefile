# `make demo` and `make test` set everything up on a fresh machine: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check fmt clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

# several processes; tests/conftest.py says how many, and which tests stay together
test: .venv/dev
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch goes first and alone: a plain install of the project could resolve to another build of it
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
