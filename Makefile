# `make demo` and `make test` set up .venv on the first call and reuse it afterwards.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --constraint constraints.txt

.PHONY: help demo test lint bench clean

help:
	@echo "make demo   set up .venv and run the V1 gratings study into demo/ (report: demo/report.html)"
	@echo "make test   set up .venv and run the tests"
	@echo "make lint   ruff, mypy and import-linter"
	@echo "make bench  run every benchmark and print its ratios"
	@echo "make clean  remove .venv and caches"

demo: $(VENV)/.installed
	$(BIN)/neuro-lens demo --out demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy neuro_lens
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[poyo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[poyo,dev]'
	@touch $@
