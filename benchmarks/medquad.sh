#!/bin/sh
# Two federated rounds on MedQuAD, and what each hospital reaches alone with the same steps.
# Usage: MEDQUAD=FILE sh benchmarks/medquad.sh FOLDER [examples to compare on [examples to decide and report on]]
set -eu
work="$1"
samples="${2:-300}"
few="${3:-50}"
fedmed="${FEDMED:-fedmed}"
assign="A=GHR,GARD;B=NIDDK,NINDS,NHLBI;C=MPlusHealthTopics,NIHSeniorHealth,CancerGov,CDC"
[ -d "$work/data" ] || "$fedmed" split --workspace "$work" --dataset "$MEDQUAD" --by column:source \
  --assign "$assign" --group-by focus --near-duplicates off --learning-rate 2e-4
"$fedmed" round --workspace "$work" --rounds 2 --max-eval-samples "$few"

set --
for site in A B C; do
  alone="$work/alone/$site"
  if [ ! -d "$alone" ]; then
    # The same plan with one site. Its first step is the contribution that it made to round 1.
    mkdir -p "$alone/data" "$alone/adapters"
    sed -e "s/^names = .*/names = [\"$site\"]/" -e "s/^min_sites = .*/min_sites = 1/" \
      "$work/federation.toml" > "$alone/federation.toml"
    cp "$work/data/split.json" "$alone/data/"
    cp -R "$work/data/$site" "$alone/data/"
    cp -R "$work/rounds/001/$site" "$alone/adapters/"
  fi
  "$fedmed" round --workspace "$alone" --rounds 2 --max-eval-samples 2
  set -- "$@" --alone "$site=$alone/rounds/002/global"
done
"$fedmed" compare --workspace "$work" --max-eval-samples "$samples" "$@"
