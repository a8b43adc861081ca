"""Time and memory of fedmed split for 1 and 4 million rows, in turns, in one run. Prints JSON.

python scale.py MEDQUAD.jsonl.gz FOLDER [full] [small large]: full searches for near-duplicates and identifiers too.
"""

import json
import sys
from pathlib import Path

from measured import BARE, make_rows, split

medquad, folder = sys.argv[1], Path(sys.argv[2])
full = "full" in sys.argv
small, large = [int(part) for part in sys.argv[3:] if part.isdigit()] or [1_000_000, 4_000_000]
folder.mkdir(parents=True, exist_ok=True)
options = [] if full else BARE
files = {count: make_rows(medquad, count, folder / f"{count}.parquet") for count in (small, large)}
first = split(files[small], folder / "work", *options)
whole = split(files[large], folder / "work", *options)
again = split(files[small], folder / "work", *options)
least = min(first["cpu_seconds"], again["cpu_seconds"])
memory = max(first["peak_memory_bytes"], again["peak_memory_bytes"])
print(
    json.dumps(
        {
            "options": options or "defaults",
            "runs": {small: [first, again], large: [whole]},
            "seconds_per_row_ratio": round(
                whole["seconds"] / large / ((first["seconds"] + again["seconds"]) / 2 / small), 3
            ),
            "cpu_per_row_ratio": round(whole["cpu_seconds"] / large / (least / small), 3),
            "growth_bytes_per_row": round((whole["peak_memory_bytes"] - memory) / (large - small), 1),
        },
        indent=2,
    )
)
