"""Rows to divide among sites, and what `fedmed split` made of them."""

import json
import random

import pyarrow.parquet

from fedmed_cli.cli.app import main
from fedmed_cli.records.split import SplitRecord

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "l", "sk", "v", "m", "xy")]


def text(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def make_rows(count, seed=0, labels=4, length=30):
    rng = random.Random(seed)
    return [
        {
            "question": text(rng, 6) + "?",
            "answer": text(rng, length),
            "label": f"label {int(labels * rng.random() ** 2)}",
            "patient_id": f"P{rng.randrange(max(1, count // 3))}",
            "number": str(n),
        }
        for n in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(root, path, *argv):
    assert main(["split", "-q", "-C", str(root), "--dataset", str(path), *map(str, argv)]) == 0
    return SplitRecord.read(root / "data/split.json")


def read_sets(root):
    """Every written file with its rows, by plain json and pyarrow."""
    found = {}
    for path in sorted((root / "data").rglob("*")):
        name = path.relative_to(root / "data").as_posix()
        if path.suffix == ".jsonl":
            found[name] = [json.loads(line) for line in path.read_text().split("\n") if line]
        elif path.suffix == ".parquet":
            found[name] = pyarrow.parquet.read_table(path).to_pylist()
    return found
