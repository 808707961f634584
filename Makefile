# `make demo` and `make test` need Python 3.11, make and a package registry, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
HOSTS ?= 3

.PHONY: demo test test-slow fleet fleet-down fleet-test soak fleet-packages check ui bench claims lock clean

demo: $(READY)
	$(BIN)/python sweep.py

test: check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

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

$(READY): requirements.lock pyproject.toml cluster/scrimp_cluster/environment.sh
	PYTHON=$(PYTHON) sh cluster/scrimp_cluster/environment.sh
	touch $@

# All claims in turn, or `make claims CLAIM=name`; the same command goes on where it was interrupted.
claims: $(READY)
	$(BIN)/python -m benchmarks.claims run $(CLAIM)

lock: $(READY)
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --extra dev --extra postgres --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
