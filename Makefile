# `make demo` and `make test` need Python 3.11 or newer, make and a package registry, nothing else. PYTHON=python3.13 names
# the Python of the environment, which it keeps from then on.
BIN := .venv/bin
READY := .venv/.ready
HOSTS ?= 3

.PHONY: demo test test-slow browser-test browser-packages fleet fleet-down fleet-test soak fleet-packages check ui bench bench-search claims lock clean $(READY)

demo: $(READY)
	$(BIN)/python sweep.py

# Half more processes than cores, since some tests wait for processes that they have started.
test: check
	$(BIN)/python -m pytest --numprocesses $$(( $$(nproc) + ($$(nproc) + 1) / 2 )) --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# MLflow and the report in Chromium. Playwright is in a folder of its own: no node of a cluster needs it.
browser-test: $(READY) browser-packages
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv-browser "playwright>=1.50,<2"
	PYTHONPATH=.venv-browser $(BIN)/python -m pytest -m browser --basetemp=.venv-browser/screenshots
	@echo "screenshots: .venv-browser/screenshots/browser0/"

browser-packages:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium; }

# Workstations on this machine, as network namespaces: needs root and Debian's openssh-server, rsync and iproute2.
fleet: $(READY) fleet-packages
	$(BIN)/python tests/fleet/workstations.py up --hosts $(HOSTS)

fleet-down:
	$(BIN)/python tests/fleet/workstations.py down

fleet-test: $(READY) fleet-packages
	HOSTS=$(HOSTS) $(BIN)/python -m pytest -v -m fleet tests/fleet

soak: $(READY) fleet-packages
	$(BIN)/python tests/fleet/soak.py

fleet-packages:
	@test "$$(id -u)" = 0 || { echo "make: a fleet of network namespaces needs root" >&2; exit 1; }
	@command -v rsync >/dev/null && command -v ip >/dev/null && test -x /usr/sbin/sshd || \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends openssh-server rsync iproute2; }

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

ui: $(READY)
	$(BIN)/scrimp ui

bench: $(READY)
	$(BIN)/python -m benchmarks

# QUICK=1: three seeds of one surface, in seconds. All of it takes hours, and goes on where it was interrupted.
ifdef QUICK
bench-search: $(READY)
	$(BIN)/python -m benchmarks.search --quick
else
bench-search: $(READY) .venv-search/tables/nas-imagenet.npz
	$(BIN)/python -m benchmarks.search $(ARGS)
endif

# The peers, each with its own requirements; what they share with Scrimp has the version of the lock.
.venv-search/tables/nas-imagenet.npz: benchmarks/search/requirements.txt | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-search
	$(BIN)/uv pip install --quiet --python .venv-search/bin/python \
		--requirement benchmarks/search/requirements.txt --constraint requirements.lock
	PYTHONPATH=.:platform:search_spaces:trainers .venv-search/bin/python -m benchmarks.search.tables .venv-search/tables

# It knows by itself whether there is anything to do.
$(READY):
	@sh cluster/scrimp_cluster/environment.sh

# All claims in turn, or `make claims CLAIM=name`; the same command goes on where it was interrupted.
claims: $(READY)
	$(BIN)/python -m benchmarks.claims run $(CLAIM)

# One version of each package for every Python from 3.11 on, since all machines of a cluster have the same.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
		--extra dev --extra lsun --extra postgres --extra text --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .venv-search .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
