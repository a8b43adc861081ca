"""How many of 500 near-duplicates planted into MedQuAD stay with their originals: python near_duplicates.py MEDQUAD.

Each is an example with 2 to 10 % of its words replaced, left out or added. Prints JSON.
"""

import gzip
import json
import random
import sys
import tempfile
from pathlib import Path

from fedmed_cli.cli.app import main
from fedmed_cli.records.split import SplitRecord


def edited(text: str, rng: random.Random, share: float) -> str:
    words = text.split()
    for _ in range(int(share * len(words))):
        at, kind = rng.randrange(len(words)), rng.choice(("replace", "replace", "drop", "add"))
        if kind == "drop":
            del words[at]
        else:
            words[at : at + (kind == "replace")] = [f"new{rng.randrange(10**6)}"]
    return " ".join(words)


with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
rng = random.Random(0)
long = [row for row in rows if len(row["answer"].split()) >= 10]
for number, row in enumerate(rng.sample(long, 500)):
    row["pair"] = number
    share = rng.uniform(0.02, 0.1)
    texts = {part: edited(row[part], rng, share) for part in ("question", "answer")}
    rows.append(row | texts | {"id": f"planted/{number}"})
result = {}
for mode in ("0.6", "off"):
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "x.jsonl", Path(folder) / "work"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        argv = ["split", "-q", "-C", str(work), "--dataset", str(data), "--by", "iid", "--hospitals", "5"]
        assert main([*argv, "--near-duplicates", mode, "--phi", "off"]) == 0
        where: dict[str, set[str]] = {}
        for path in (work / "data").rglob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line and (pair := json.loads(line).get("pair")) is not None:
                    where.setdefault(pair, set()).add(str(path))
        record = SplitRecord.read(work / "data/split.json")
        near = record.near_duplicates
        result[mode] = {
            "planted": len(where),
            "on_one_side": sum(len(files) == 1 for files in where.values()),
            "groups": record.num_groups,
            "near_duplicates": near.num_rows if near else None,
            "torn_by_the_check": near.num_torn if near else None,
        }
print(json.dumps(result, indent=2))
