"""The split of real data: MedQuAD, where $MEDQUAD names its file."""

import gzip
import json
import os
from collections import Counter, defaultdict

import pytest

from fedmed_cli.cli.app import main
from fedmed_cli.records.split import SplitRecord

MEDQUAD = os.environ.get("MEDQUAD")
pytestmark = pytest.mark.skipif(not MEDQUAD, reason="$MEDQUAD does not name MedQuAD's file (JSON lines, gzipped)")
ASSIGN = {
    "A": ("GHR", "GARD"),
    "B": ("NIDDK", "NINDS", "NHLBI"),
    "C": ("MPlusHealthTopics", "NIHSeniorHealth", "CancerGov", "CDC"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("medquad")
    assign = ";".join(f"{site}={','.join(values)}" for site, values in ASSIGN.items())
    argv = ["split", "-q", "-C", str(root), "--dataset", MEDQUAD, "--by", "column:source", "--assign", assign]
    argv += ["--near-duplicates", "off"]  # rows that are nearly the same would draw whole groups along
    assert main([*argv, "--group-by", "focus"]) == 0
    return root


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_every_row_is_in_one_set_and_no_focus_or_text_in_two(root):
    with gzip.open(MEDQUAD, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sets = {
        f"{site}/{part}": read(root / f"data/{site}/{part}.jsonl")
        for site in ASSIGN
        for part in ("train", "validation")
    }
    sets |= {part: read(root / f"data/{part}.jsonl") for part in ("coordinator", "test")}
    assert Counter(row["id"] for part in sets.values() for row in part) == Counter(row["id"] for row in rows)
    seen = defaultdict(set)
    for name, part in sets.items():
        for row in part:
            seen["focus", row["focus"]].add(name)
            seen["text", row["question"].strip().lower(), row["answer"].strip().lower()].add(name)
    assert not [key for key, names in seen.items() if len(names) > 1]


def test_a_group_goes_whole_to_the_site_that_holds_most_of_it(root):
    home = {value: site for site, values in ASSIGN.items() for value in values}
    votes = defaultdict(Counter)
    where = {}
    for site in ASSIGN:
        for part in ("train", "validation"):
            for row in read(root / f"data/{site}/{part}.jsonl"):
                votes[row["focus"]][home[row["source"]]] += 1
                where[row["focus"]] = site
    moved = 0
    for focus, counts in votes.items():
        most = max(counts.values())
        moved += sum(counts.values()) - counts[where[focus]]
        assert counts[where[focus]] == most or len(counts) > 1
    record = SplitRecord.read(root / "data/split.json")
    assert 0 < moved <= record.num_moved < 300
    assert record.num_examples == 10_000
