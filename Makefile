# `make demo` and `make test` need Python 3.11, make and a package registry, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow check ui bench claims lock clean

demo: $(READY)
	$(BIN)/python sweep.py

test: check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

ui: $(READY)
	$(BIN)/scrimp ui

bench: $(READY)
	$(BIN)/python -m benchmarks

# The environment is exactly requirements.lock, plus this checkout in place.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet "$$(grep '^uv==' requirements.lock)"; }
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# All claims in turn, or `make claims CLAIM=name`; the same command goes on where it was interrupted.
claims: $(READY)
	$(BIN)/python -m benchmarks.claims run $(CLAIM)

lock: $(READY)
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
