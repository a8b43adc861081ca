"""fedmed split against flwr-datasets on the same 1,000,000 rows, in turns, in one run. Prints JSON.

python compare.py MEDQUAD.jsonl.gz FOLDER PYTHON_WITH_FLWR_DATASETS [rows] [turns]
"""

import json
import shutil
import statistics
import sys
from pathlib import Path

from measured import BARE, HERE, make_rows, run, split

medquad, folder, theirs = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
rows = int(sys.argv[4]) if len(sys.argv) > 4 else 1_000_000
turns = int(sys.argv[5]) if len(sys.argv) > 5 else 2
folder.mkdir(parents=True, exist_ok=True)
data = make_rows(medquad, rows, folder / f"{rows}.parquet")
found: dict[str, list[dict[str, float]]] = {"fedmed": [], "flwr-datasets": []}
for _ in range(turns):
    found["fedmed"].append(split(data, folder / "work", "--format", "parquet", *BARE))
    out = folder / "theirs"
    found["flwr-datasets"].append(run([theirs, str(HERE / "flwr_dirichlet.py"), str(data), str(out), "3", "0.5"]))
    shutil.rmtree(out)
middle = {name: {key: statistics.median(turn[key] for turn in runs) for key in runs[0]} for name, runs in found.items()}
ratios = {key: round(middle["flwr-datasets"][key] / middle["fedmed"][key], 2) for key in middle["fedmed"]}
print(json.dumps({"rows": rows, "turns": found, "flwr-datasets / fedmed": ratios}, indent=2))
