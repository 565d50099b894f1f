# `make demo` and `make test` set everything up on a fresh machine: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check fmt docs peers bench growth clean

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

# the pages that repeat what the program knows, then the site in site/, which needs Python 3.11
docs: .venv/dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/website.py

# what we are measured against, each in a virtual environment of its own
peers:
	PYTHON=$(PYTHON) benchmarks/peers.sh .bench/peers

# the goals for a CPU, a table each: under 25 minutes on 2 cores, once the peers are there
bench: .venv/bench peers
	$(BIN)/python benchmarks/run.py all --minutes 2.5

# how time, memory and tokens grow, with the pictures of docs/speed.md
growth: .venv/bench
	$(BIN)/python benchmarks/growth.py

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

.venv/bench: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev,bench]"
	touch $@

clean:
	rm -rf .venv .bench site .mypy_cache .pytest_cache .ruff_cache
