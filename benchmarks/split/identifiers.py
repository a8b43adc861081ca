"""Planted identifiers found per kind, and what is found in MedQuAD, which has no patients: JSON.

python identifiers.py MEDQUAD.jsonl.gz
"""

import gzip
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from fedmed_cli.data import identifiers

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.phi_sentences import MAKERS, sentence

EACH = 400
planted = {}
for kind in MAKERS:
    rng = random.Random(f"benchmark {kind}")
    found = sum(identifiers.count(sentence(kind, rng)[0])[kind] > 0 for _ in range(EACH))
    planted[kind] = round(found / EACH, 4)
with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
began = time.process_time()
alarms: Counter[str] = Counter()
some = 0
for row in rows:
    counts = identifiers.count(row["question"]) + identifiers.count(row["answer"])
    alarms += counts
    some += bool(counts)
print(
    json.dumps(
        {
            "planted_each": EACH,
            "share_found": planted,
            "medquad_rows": len(rows),
            "medquad_rows_with_any": some,
            "medquad_found": dict(sorted(alarms.items())),
            "cpu_microseconds_per_row": round((time.process_time() - began) / len(rows) * 1e6),
        },
        indent=2,
    )
)
