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


def groups_of(rows):
    """The rows that belong together, for they share a focus or a text with one another or with the same others."""
    groups = {}  # key to group; the keys of a group name the same one
    for row in rows:
        keys = [f"focus {row['focus']}", f"text {row['question'].lower().split()} {row['answer'].lower().split()}"]
        joined = ([row], set(keys))
        for group, others in {id(groups[key]): groups[key] for key in keys if key in groups}.values():
            joined[0].extend(group)
            joined[1].update(others)
        groups |= dict.fromkeys(joined[1], joined)
    return [group for group, _ in {id(one): one for one in groups.values()}.values()]


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
    with gzip.open(MEDQUAD, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    placed = {
        row["id"]: site
        for site in ASSIGN
        for part in ("train", "validation")
        for row in read(root / f"data/{site}/{part}.jsonl")
    }
    moved = 0
    for group in groups_of(rows):
        counts = Counter(home[row["source"]] for row in group)
        moved += len(group) - max(counts.values())
        sites = {placed.get(row["id"]) for row in group}  # None: of the test set or the coordinator's
        assert len(sites) == 1
        assert sites <= {None, *(site for site, count in counts.items() if count == max(counts.values()))}
    record = SplitRecord.read(root / "data/split.json")
    assert 0 < moved == record.num_moved
    assert record.num_examples == 10_000
