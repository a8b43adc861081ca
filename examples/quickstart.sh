#!/bin/sh
# Set up an environment and run one federated round on the embedded base model.
set -eu
home="$(cd "$(dirname "$0")/.." && pwd)"
venv="${FEDMED_VENV:-$home/.venv}"
work="${1:-$home/.venv/quickstart}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet torch==2.13.0
"$venv/bin/python" -m pip install --quiet -c "$home/constraints.txt" -e "$home"
fedmed="$venv/bin/fedmed"
# Few steps and few examples, so that it takes minutes; the defaults are 100 steps and 600 test examples.
[ -d "$work/data" ] || "$fedmed" split --workspace "$work"
"$fedmed" round --workspace "$work" --rounds 1 --max-steps 8 --max-eval-samples 16
"$fedmed" compare --workspace "$work" --max-eval-samples 96 --max-new-tokens 32
echo "next: open $work/reports/report.html, or $fedmed chat --workspace $work"
