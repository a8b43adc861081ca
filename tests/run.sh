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
"$venv/bin/python" -m pytest "$@"
