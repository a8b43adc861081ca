"""Write N rows of MedQuAD's texts made unique, as JSONL or Parquet: python make_rows.py MEDQUAD.jsonl.gz N OUT."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

COLUMNS = ("id", "question", "answer", "source", "question_type", "focus")
BATCH = 20_000


def rows(medquad: str, count: int):
    """Row n is row n modulo 10,000 of MedQuAD with its number in id and question, so that none comes twice."""
    with gzip.open(medquad, "rt", encoding="utf-8") as file:
        source = [json.loads(line) for line in file]
    for number in range(count):
        row = source[number % len(source)]
        unique = {"id": f"{row['id']}/{number}", "question": f"{row['question']} (case {number})"}
        yield {name: row[name] for name in COLUMNS} | unique


def main() -> None:
    medquad, count, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    found = rows(medquad, count)
    if out.suffix == ".parquet":
        schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        with pyarrow.parquet.ParquetWriter(out, schema) as writer:
            for start in range(0, count, BATCH):
                part = [next(found) for _ in range(min(BATCH, count - start))]
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
    else:
        with out.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    print(json.dumps({"rows": count, "file": str(out), "bytes": out.stat().st_size}))


if __name__ == "__main__":
    main()
