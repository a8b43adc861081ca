#!/bin/sh
# All that only a GPU shows, in one command and without a network: speed and memory of a 7B model's training against
# TRL, a whole round, resuming after a kill, measuring, chat, gradients. A table, JSON, and exit code 1 if a check fails.
# Usage: sh benchmarks/gpu.sh [--trl FOLDER] [--base-wheel FILE] [--only PART ...]     (--help lists all)
#        sh benchmarks/gpu.sh --device cpu --shape tiny --steps 8 --seeds 0             tries the script itself
set -eu
home="$(cd "$(dirname "$0")/.." && pwd)"
python="${FEDMED_VENV:-$home/.venv}/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
exec "$python" "$home/benchmarks/training/gpu.py" "$@"
