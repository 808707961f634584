#!/bin/sh
# Makes .venv exactly requirements.lock, plus this checkout in place. `make` runs it, and `ray up` on every node.
# PYTHON names the Python to use; without it an environment keeps the one it has. Does nothing where that has been done.
set -eu
cd "$(dirname "$0")/../.."
# Prints a Python's version, 3.13 or so; nothing where there is none or an older one than Scrimp needs.
version() { "$1" -c 'import sys; sys.version_info < (3, 11) or print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
has=$(version .venv/bin/python)
python=${PYTHON:-${has:+.venv/bin/python}}
python=${python:-$(command -v python3.11 || echo python3)}
gets=$(version "$python")
if [ -z "$gets" ]; then
    echo "$python: no Python 3.11 or newer; PYTHON names another one" >&2
    exit 1
fi
wanted="$gets $(cat requirements.lock pyproject.toml cluster/scrimp_cluster/environment.sh | cksum)"
if [ "$(cat .venv/.ready 2>/dev/null)" = "$wanted" ]; then exit; fi
echo "Installing requirements.lock into .venv, with Python $gets"
if [ "$has" != "$gets" ] || [ ! -x .venv/bin/uv ]; then
    "$python" -m venv --clear .venv
    .venv/bin/pip install --quiet "$(grep '^uv==' requirements.lock)"
fi
# Compiled here once: where Python keeps no bytecode, each of the nine processes of a repeat would compile Ray and pandas.
.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$wanted" >.venv/.ready
