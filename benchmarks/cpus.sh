#!/bin/sh
# Tests and training speed under each class of CPU that this one can play: sh benchmarks/cpus.sh --help
set -eu
home="$(cd "$(dirname "$0")/.." && pwd)"
python="${FEDMED_VENV:-$home/.venv}/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
exec "$python" "$home/benchmarks/training/cpus.py" "$@"
