#!/bin/sh
# Makes .venv exactly requirements.lock, plus this checkout in place. `make` runs it, and `ray up` on every node.
# Does nothing where that has been done.
set -eu
cd "$(dirname "$0")/../.."
wanted=$(cat requirements.lock pyproject.toml cluster/scrimp_cluster/environment.sh | cksum)
if [ "$(cat .venv/.ready 2>/dev/null)" = "$wanted" ]; then exit; fi
if [ ! -x .venv/bin/uv ]; then
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv .venv
    .venv/bin/pip install --quiet "$(grep '^uv==' requirements.lock)"
fi
# Compiled here once: where Python keeps no bytecode, each of the nine processes of a repeat would compile Ray and pandas.
.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$wanted" >.venv/.ready
