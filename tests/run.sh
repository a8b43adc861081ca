#!/bin/sh
# Set up an environment, install fedmed with the pinned versions, and run every check.
set -eu
cd "$(dirname "$0")/.."
venv="${FEDMED_VENV:-.venv}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet torch==2.13.0
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[dev]'
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
"$venv/bin/mypy"
# Two processes of one thread each: two of two threads would wait for each other.
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
[ $# -eq 0 ] || exit 0

# The oldest typer and rich that the metadata allow, with as many threads as there are cores.
oldest="$venv/oldest"
[ -d "$oldest" ] || "$venv/bin/python" -m pip install --quiet --target "$oldest" typer==0.20.1 rich==14.0.0
PYTHONPATH="$oldest" "$venv/bin/python" -m pytest --quiet tests/cli/test_commands.py
