"""Identifiers that patterns can find are found, counted by kind and site, and nothing is written before."""

import json
import random

import pytest
from helpers.phi_sentences import MAKERS, sentence
from helpers.splits import make_rows, read_sets, split, write

from fedmed_cli.cli.app import main
from fedmed_cli.data import identifiers
from fedmed_cli.records.split import DivisionRecord, SplitRecord

EACH = 134  # times 15 kinds: 2,010


def test_the_kinds_are_those_of_the_planted_ones():
    assert set(MAKERS) == set(identifiers.KINDS)


@pytest.mark.parametrize("kind", MAKERS)
def test_99_of_100_planted_identifiers_are_found_and_gone_after_redaction(kind):
    rng = random.Random(f"phi {kind}")
    found = gone = 0
    for _ in range(EACH):
        text, identifier = sentence(kind, rng)
        found += identifiers.count(text)[kind] >= 1
        gone += identifier not in identifiers.redact(text)
    assert found >= 0.99 * EACH
    assert gone >= 0.99 * EACH


HARMLESS = [
    "Take 500 mg twice a day for 10 days; the dose is 2.5-5 mg.",
    "Blood pressure was 120/80, pulse 72, SpO2 98 %, pH 7.35.",
    "About 1 in 10,000 people, 3 to 5 percent, 100-200 cases a year.",
    "The gene FGFR3 on chromosome 4p16.3, mutation 1138G>A, ICD-10 E11.9.",
    "A 62-year-old woman; children aged 3-5; adults over 65 years.",
    "In 2019 the guideline changed. It may 5 times reduce the risk.",
    "Ratio 1:2:3, grade 2/3, visual acuity 20/40, T4N1M0.",
    "",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_identifier(text):
    assert identifiers.find(text) == []
    assert identifiers.redact(text) == text


@pytest.mark.parametrize("text", ["Ms Smith was seen.", "Ms. Smith was seen.", "She lives at 5 Baker Street."])
def test_short_forms_are_found(text):
    assert len(identifiers.find(text)) == 1


def test_what_is_found_does_not_depend_on_the_text_around():
    rng = random.Random(5)
    filler = "The patient was given aspirin and sent home after a while without any complaints. " * 3
    for kind in MAKERS:
        for _ in range(20):
            text, _ = sentence(kind, rng)
            assert identifiers.count(filler + text + " " + filler) == identifiers.count(text), text


def planted_rows():
    rows = make_rows(400)
    for n in range(40):
        rows[n]["answer"] += " Call 555-867-5309 or write to someone@example.org on 03/04/2021."
    return rows


def test_warn_counts_by_kind_and_site_and_says_what_it_is_not(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", planted_rows())
    assert main(["split", "-C", str(tmp_path / "w"), "--dataset", str(path), "--near-duplicates", "off"]) == 0
    err = capsys.readouterr().err
    assert "identifiers found in 40 of 400 examples: 40 date, 40 email, 40 telephone" in err
    assert "names and addresses are not reliably found, so the data are not de-identified" in err
    assert "867" not in err
    record = SplitRecord.read(tmp_path / "w/data/split.json")
    assert record.phi_found == {"date": 40, "email": 40, "telephone": 40}
    assert sum(counts.phi["email"] for counts in record.sites.values()) == 40
    assert all(counts.phi["email"] > 0 for counts in record.sites.values())


def test_block_writes_nothing(tmp_path, fails):
    path = write(tmp_path / "x.jsonl", planted_rows())
    message = fails(3, "split", "-C", tmp_path / "w", "--dataset", path, "--phi", "block")
    assert "40 of 400 examples hold what may identify a patient (40 date, 40 email, 40 telephone)" in message
    assert not (tmp_path / "w/data").exists()
    assert not (tmp_path / "w/federation.toml").exists()
    assert not (tmp_path / "w/.fedmed/split").exists()


def test_redact_replaces_in_every_file(tmp_path):
    path = write(tmp_path / "x.jsonl", planted_rows())
    record = split(tmp_path / "w", path, "--phi", "redact", "--near-duplicates", "off")
    rows = [row for found in read_sets(tmp_path / "w").values() for row in found]
    assert len(rows) == 400
    changed = [row["answer"] for row in rows if "[EMAIL]" in row["answer"]]
    assert len(changed) == 40
    assert all(answer.endswith("Call [TELEPHONE] or write to [EMAIL] on [DATE].") for answer in changed)
    assert not any("867-5309" in json.dumps(row) for row in rows)
    assert record.phi == "redact"


@pytest.mark.parametrize("mode", ["block", "redact"])
@pytest.mark.slow
def test_a_hospital_scans_its_own_file(mode, tmp_path, tiny_base, fails, capsys):
    home = tmp_path / "hospital"
    argv = ["init", "-q", "--names", "A,B", "--base", str(tiny_base), "--lora-r", "4", "--max-length", "128"]
    assert main([*argv, "-C", str(home)]) == 0
    path = write(tmp_path / "own.jsonl", planted_rows())
    argv = ["train-local", "--site", "B", "--data", path, "--max-steps", "1", "-C", home, "--base", tiny_base]
    if mode == "block":
        assert "40 of 400 examples hold" in fails(3, *argv, "--phi", "block")
        assert not (home / "data").exists()
        return
    assert main([*map(str, argv), "--phi", "redact", "--near-duplicates", "off"]) == 0
    assert "identifiers replaced in 40 of 400 examples" in capsys.readouterr().err
    record = DivisionRecord.read(home / "data/B/division.json")
    assert (record.phi, record.phi_found["telephone"]) == ("redact", 40)
    data = b"".join(part.read_bytes() for part in (home / "data/B").glob("*.jsonl"))
    assert data.count(b"[TELEPHONE]") == 40
    assert b"867-5309" not in data
