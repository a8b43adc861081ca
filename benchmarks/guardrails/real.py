"""What the shipped guardrails do on what real people wrote: python benchmarks/guardrails/real.py FOLDER

They were learnt from these texts: what they do on texts that they have not seen, `train.py --held` measures.

FOLDER holds consumer_questions.jsonl.gz (K-QA, MIT, and MeQSum, CC BY 4.0) and misuse_requests.jsonl.gz (the training
half of MedSafetyBench, MIT), each with `source` and `prompt`. The labels beside this program name the texts by hash.
Two readers, both language models and neither with the other's labels, read every text by the rule in labels/RULE.md;
where their levels differed, a third reading settled it. 1,560 of the 1,578 levels agreed, and 442 of the 450 labels of
misuse.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

from fedmed_cli.chat.guardrails.question import check_question
from fedmed_cli.intervals import wilson

LABELS = Path(__file__).with_name("labels")
FILES = {"consumer_questions": ("real_labels.jsonl", "level"), "misuse_requests": ("misuse_labels.jsonl", "label")}


def sha(text: str) -> str:
    """How the labels name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(folder: Path, name: str) -> list[tuple[str, str, str]]:
    """Source, label and text of each message of a file."""
    labels_name, field = FILES[name]
    rows = map(json.loads, (LABELS / labels_name).read_text(encoding="utf-8").splitlines())
    labels = {row["sha256"]: row[field] for row in rows}
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    return [(row["source"], labels[sha(row["prompt"])], row["prompt"]) for row in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    totals: Counter[tuple[str, str]] = Counter()
    findings: Counter[tuple[str, str, str]] = Counter()
    for name in FILES:
        for source, label, text in read(arguments.folder, name):
            totals[source, label] += 1
            found = check_question(text)
            outcomes = {finding.level.value for finding in found}
            outcomes |= {finding.kind.value for finding in found if finding.level.value == "urgent"}
            findings.update((source, label, outcome) for outcome in outcomes)
    columns = ("source", "label", "messages", "urgent", "of them crisis", "possible", "declined")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for (source, label), total in sorted(totals.items()):
        cells = []
        for outcome in ("urgent", "crisis", "possible", "decline"):
            hits = findings[source, label, outcome]
            share = wilson(hits, total)
            cells.append(f"{hits} = {100 * hits / total:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]")
        print(f"| {source} | {label} | {total:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
