#!/bin/sh
# Two rounds by hand: three hospitals and a coordinator, each in a folder of its own. Only the plan, adapters
# and numbers are copied between them; here `cp` stands for SFTP, e-mail or a USB stick.
# Usage: sh examples/three_hospitals.sh [FOLDER]     (after examples/quickstart.sh, which makes the environment)
set -eu
home="$(cd "$(dirname "$0")/.." && pwd)"
fedmed="${FEDMED:-${FEDMED_VENV:-$home/.venv}/bin/fedmed}"
work="${1:-$home/.venv/three-hospitals}"
steps="${STEPS:-8}"
mkdir -p "$work"
cd "$work"

# Each hospital has a file of its own. For this example the bundled corpus stands in for them.
if [ ! -d source ]; then
  "$fedmed" split --quiet --workspace source
  for site in A B C; do
    mkdir -p "hospital-$site"
    cp "source/data/$site/train.jsonl" "hospital-$site/records.jsonl"
  done
fi

# The coordinator writes the plan and sends it to every hospital.
[ -f coordinator/federation.toml ] || "$fedmed" init --workspace coordinator --names A,B,C
for site in A B C; do
  cp coordinator/federation.toml "hospital-$site/"
done

# Round 1: each hospital trains on its own file and sends its adapter.
mkdir -p coordinator/adapters
for site in A B C; do
  "$fedmed" train-local --workspace "hospital-$site" --site "$site" --data "hospital-$site/records.jsonl" \
    --group-by focus --max-steps "$steps" --max-eval-samples 16
  cp -R "hospital-$site/adapters/$site" coordinator/adapters/
done
"$fedmed" aggregate --workspace coordinator coordinator/adapters/*

# The coordinator sends the global adapter back. Round 2 starts from it.
for site in A B C; do
  cp -R coordinator/rounds/001/global "hospital-$site/received"
  "$fedmed" train-local --workspace "hospital-$site" --site "$site" --global "hospital-$site/received" \
    --max-steps "$steps" --max-eval-samples 16
  rm -R "coordinator/adapters/$site"
  cp -R "hospital-$site/adapters/$site" coordinator/adapters/
done
"$fedmed" aggregate --workspace coordinator coordinator/adapters/*

# Inside a hospital: did it help here? On this hospital's own test examples, which never leave it.
"$fedmed" compare --workspace hospital-A --site A --adapter "global-2=coordinator/rounds/002/global" \
  --max-eval-samples 48 --no-answers
