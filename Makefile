# `make run` and `make test` need Python 3.11-3.13, git and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test bench bench-smoke lint clean

run: .venv/installed
	$(BIN)/contrast run

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile

bench: .venv/installed
	$(BIN)/python benchmarks/run_all.py

bench-smoke: .venv/installed
	$(BIN)/python benchmarks/run_all.py --smoke

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .contrast artifacts dvc.lock
