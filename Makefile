# `make demo` and `make test` set up .venv on the first call and reuse it afterwards.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --constraint constraints.txt
POYO_PLUS := .venv-torch-brain-0.1
PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: help demo test test-poyo-plus lint bench clean

help:
	@echo "make demo   set up .venv and run the V1 gratings study into demo/ (report: demo/report.html)"
	@echo "make test   set up .venv and run the tests"
	@echo "make test-poyo-plus"
	@echo "            set up $(POYO_PLUS) beside .venv and test POYO+ and CalciumPOYO+ as published"
	@echo "make lint   ruff, mypy and import-linter"
	@echo "make bench  run every benchmark and print its ratios"
	@echo "make clean  remove both environments and caches"

demo: $(VENV)/.installed
	$(BIN)/neuro-lens demo --out demo --workers 2

test: $(VENV)/.installed-dev
	$(BIN)/pytest

test-poyo-plus: $(POYO_PLUS)/.installed
	NEURO_LENS_MAIN_PYTHON=$(BIN)/python $(POYO_PLUS)/bin/python -m pytest tests_torch_brain_01

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy neuro_lens
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf $(VENV) $(POYO_PLUS) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[poyo]'
	@touch $@

# torchaudio stays out of the environment: its wheel needs CUDA, and transformers would import it
$(VENV)/.installed-dev: $(VENV)/.installed requirements-braindecode.txt
	$(PIP) --editable '.[poyo,dev]'
	$(PIP) --no-deps --requirement requirements-braindecode.txt
	$(PIP) --no-deps --upgrade --target $(VENV)/torchaudio torchaudio
	@touch $@

# torch_brain 0.1.2 in front of everything that the main environment has
$(POYO_PLUS)/.installed: $(VENV)/.installed-dev requirements-torch-brain-0.1.txt
	rm -rf $(POYO_PLUS)
	$(BIN)/python -m venv --without-pip $(POYO_PLUS)
	packages=$$($(POYO_PLUS)/bin/python -c '$(PACKAGES)') && \
	main=$$($(BIN)/python -c '$(PACKAGES)') && \
	echo "import site; site.addsitedir('$$main')" > "$$packages/main.pth" && \
	$(BIN)/pip install --no-deps --target "$$packages" --requirement requirements-torch-brain-0.1.txt
	@touch $@
