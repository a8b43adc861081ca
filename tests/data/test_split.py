"""Dividing rows among sites: no leak, the sizes and laws asked for, and the same bytes for the same seed."""

import collections
import dataclasses
import gzip
import hashlib
import json
import os
import random

import numpy as np
import pytest
from helpers.crashing import snapshot
from helpers.splits import WORDS, make_rows, read_sets, split, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed_cli.cli.app import main
from fedmed_cli.data import composition, leak_check, partition, row_index, same_text
from fedmed_cli.data.leakage_groups import merge, number_groups
from fedmed_cli.records.split import SplitRecord

CORPUS_DIGEST = "0a703ccf0dc55aa89ff63a447581655420d4d9346d350e2b249b3f8caf7bcdcd"


def where(root, column):
    """For each value of a column the files that it is in."""
    result = collections.defaultdict(set)
    for name, rows in read_sets(root).items():
        for row in rows:
            result[row.get(column)].add(name)
    return result


# --- no leak ----------------------------------------------------------------------------------------


def test_the_original_demo_sizes(tmp_path):
    medquad = os.environ.get("MEDQUAD")
    if not medquad:
        pytest.skip("MEDQUAD names no file")
    record = split(tmp_path / "one", medquad, "--hospitals", 3, "--sizes", "4520,2521,2959")
    assert [record.sites[name].total for name in "ABC"] == [4520, 2521, 2959]
    split(tmp_path / "two", medquad, "--hospitals", 3, "--sizes", "4520,2521,2959")
    ids = where(tmp_path / "one", "id")
    assert len(ids) == 10_000
    assert all(len(files) == 1 for files in ids.values())
    with gzip.open(medquad, "rt") as file:
        assert ids.keys() == {json.loads(line)["id"] for line in file}
    for name in ("A/train.jsonl", "C/validation.jsonl", "test.jsonl", "coordinator.jsonl"):
        assert (tmp_path / "one/data" / name).read_bytes() == (tmp_path / "two/data" / name).read_bytes()


@pytest.mark.slow
def test_the_bundled_corpus_is_divided_as_it_always_was(tmp_path):
    assert main(["split", "-q", "-C", str(tmp_path)]) == 0
    data = b"".join(
        (tmp_path / f"data/{name}.jsonl").read_bytes() for name in ("A/train", "B/train", "C/train", "test")
    )
    assert hashlib.sha256(data).hexdigest() == CORPUS_DIGEST


def edited(words, rng, share):
    """The text with up to `share` of its words replaced, left out or put in."""
    words = words.split()
    for _ in range(int(share * len(words))):
        at = rng.randrange(len(words))
        kind = rng.choice(("replace", "replace", "drop", "add"))
        if kind == "drop":
            del words[at]
        else:
            words[at : at + (kind == "replace")] = [f"new{rng.randrange(10**6)}"]
    return " ".join(words)


@pytest.mark.slow
def test_planted_near_duplicates_stay_on_one_side(tmp_path):
    rng = random.Random(1)
    rows = make_rows(3000, length=40)
    planted = []
    for n, row in enumerate(rng.sample(rows, 500)):
        row["pair"] = f"pair {n}"
        share = rng.uniform(0.02, 0.1)
        new = {"question": edited(row["question"], rng, share), "answer": edited(row["answer"], rng, share)}
        planted.append(row | new | {"patient_id": f"Q{n}"})
    path = write(tmp_path / "x.jsonl", [*rows, *planted])
    record = split(tmp_path / "on", path, "--by", "iid", "--hospitals", 5)
    pairs = {}
    for name, found in read_sets(tmp_path / "on").items():
        for row in found:
            if "pair" in row:
                pairs.setdefault(row["pair"], set()).add(name)
    assert len(pairs) == 500
    assert sum(len(files) == 1 for files in pairs.values()) >= 490
    assert record.num_examples == 3500
    assert record.near_duplicates.num_torn == 0
    # Without the search most of them are in two sets: the test can fail.
    split(tmp_path / "off", path, "--by", "iid", "--hospitals", 5, "--near-duplicates", "off")
    assert sum(len(files) == 2 for files in where(tmp_path / "off", "pair").values()) > 250


@pytest.mark.parametrize("by", ["iid", "dirichlet", "quantity", "pathological", "column:label"])
@pytest.mark.slow
def test_planted_groups_and_same_texts_stay_together(by, tmp_path):
    rows = make_rows(2000)
    for n in range(0, 300, 2):
        rows[n + 1]["question"] = "  " + rows[n]["question"].upper().replace(" ", "\n ")
        rows[n + 1]["answer"] = rows[n]["answer"] + " "
        rows[n]["twin"] = rows[n + 1]["twin"] = str(n)
    path = write(tmp_path / "x.jsonl", rows)
    argv = ["--by", by, "--label", "label", "--group-by", "patient_id", "--hospitals", "3"]
    record = split(tmp_path / "w", path, *argv)
    assert all(len(files) == 1 for files in where(tmp_path / "w", "patient_id").values())
    sets = read_sets(tmp_path / "w")
    twins = collections.defaultdict(set)
    for name, found in sets.items():
        for row in found:
            if "twin" in row:
                twins[row["twin"]].add(name)
    assert len(twins) == 150
    assert all(len(files) == 1 for files in twins.values())
    assert sorted(int(row["number"]) for found in sets.values() for row in found) == list(range(2000))
    assert record.checks == {"rows": 2000, "texts_in_two_sets": 0, "groups_in_two_sets": 0}


def test_the_check_on_the_written_files_would_notice(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "x.jsonl", make_rows(300))
    real = partition.partition

    def without_groups(index, *rest):
        return real(dataclasses.replace(index, group_of=np.arange(len(index), dtype=np.int32)), *rest)

    monkeypatch.setattr(partition, "partition", without_groups)
    argv = ["split", "-q", "-C", str(tmp_path / "w"), "--dataset", str(path), "--group-by", "patient_id"]
    assert main(argv) == 1
    assert "RuntimeError" in capsys.readouterr().err
    assert not (tmp_path / "w/data").exists()
    assert not (tmp_path / "w/.fedmed/split").exists()


def test_the_near_duplicates_that_the_search_missed_are_found_by_the_check(tmp_path, monkeypatch, capsys):
    from fedmed_cli.data.near_duplicates import MinHashIndex

    rng = random.Random(3)
    rows = make_rows(400, length=60)
    rows += [row | {"answer": edited(row["answer"], rng, 0.03)} for row in rows[:100]]
    path = write(tmp_path / "x.jsonl", rows)
    monkeypatch.setattr(MinHashIndex, "unite", lambda self, group_of, similarity: (group_of, 0))
    argv = ["split", "-C", str(tmp_path / "w"), "--dataset", str(path), "--by", "iid"]
    assert main(argv) == 0
    assert "near-duplicate pairs that the search missed and the check found: " in capsys.readouterr().err
    record = SplitRecord.read(tmp_path / "w/data/split.json")
    assert record.near_duplicates.num_rows > 80
    assert record.near_duplicates.num_torn < 20


# --- how it is divided --------------------------------------------------------------------------------


def test_sizes_leave_a_counted_rest(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", make_rows(500))
    assert (
        main(["split", "-C", str(tmp_path / "w"), "--dataset", str(path), "--sizes", "100,50,25", "--by", "iid"]) == 0
    )
    record = SplitRecord.read(tmp_path / "w/data/split.json")
    assert [record.sites[name].total for name in "ABC"] == [100, 50, 25]
    assert record.num_left_out == 325
    assert "325 of 500 examples are in no set" in capsys.readouterr().err


def test_quantity_skew_and_a_least_size(tmp_path, fails):
    path = write(tmp_path / "x.jsonl", make_rows(1000))
    argv = ["--by", "quantity", "--alpha", "0.4", "--hospitals", "4"]
    sizes = [counts.total for counts in split(tmp_path / "a", path, *argv, "--min-size", "60").sites.values()]
    assert sum(sizes) == 1000
    assert min(sizes) >= 60
    assert max(sizes) > 2 * min(sizes)
    message = fails(3, "split", "-C", tmp_path / "b", "--dataset", path, *argv, "--min-size", "251")
    assert "leaves each at least 251 examples" in message


def test_dirichlet_keeps_a_least_size(tmp_path):
    path = write(tmp_path / "x.jsonl", make_rows(1200))
    argv = ["--by", "dirichlet", "--label", "label", "--alpha", "0.3", "--min-size", "250"]
    record = split(tmp_path / "w", path, *argv)
    assert min(counts.total for counts in record.sites.values()) >= 250
    assert record.min_size == 250


@pytest.mark.slow
def test_each_site_has_its_few_labels(tmp_path, fails):
    path = write(tmp_path / "x.jsonl", make_rows(2000, labels=6))
    argv = ["--by", "pathological", "--label", "label", "--hospitals", "4"]
    record = split(tmp_path / "w", path, *argv, "--labels-per-site", "2")
    assert [len(counts.labels) for counts in record.sites.values()] == [2, 2, 2, 2]
    assert len(set().union(*(counts.labels for counts in record.sites.values()))) == 6
    assert record.num_examples == 2000
    message = fails(3, "split", "-C", tmp_path / "x", "--dataset", path, *argv, "--labels-per-site", "1")
    assert "4 hospitals with 1 labels each leave some of 6 labels" in message


def test_assigned_values(tmp_path):
    path = write(tmp_path / "x.jsonl", make_rows(800))
    argv = ["--by", "column:label", "--assign", "North=label 0,label 3;South=label 1,label 2"]
    split(tmp_path / "w", path, *argv)
    sets = read_sets(tmp_path / "w")
    assert {row["label"] for row in sets["North/train.jsonl"]} == {"label 0", "label 3"}
    assert {row["label"] for row in sets["South/train.jsonl"]} == {"label 1", "label 2"}


def test_sites_with_the_same_labels_are_at_no_distance(tmp_path):
    """Labels too few to be named in the record count for the distance all the same."""
    labels = [(site, label, n) for site in "ABC" for label in range(40) for n in range(9)]
    rows = [
        {"question": f"q {site} {label} {n}", "answer": f"{site}{label}{n}", "label": f"label {label}", "from": site}
        for site, label, n in labels
    ]
    path = write(tmp_path / "x.jsonl", rows)
    argv = ["--by", "column:from", "--assign", "A=A;B=B;C=C", "--label", "label", "--near-duplicates", "off"]
    record = split(tmp_path / "w", path, *argv)
    assert {site.jensen_shannon for site in record.sites.values()} == {0.0}
    assert {tuple(site.labels) for site in record.sites.values()} == {("other",)}


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("--by iid --hospitals 3 --sizes 10,20", 2, "--sizes gives 2 numbers for 3 hospitals"),
        ("--by iid --hospitals 2 --sizes 30,31", 3, "--sizes add up to 61, but there are 60 examples"),
        ("--by column:label --names A,B,C --assign A=x;B=y", 3, "site C would get no example"),
        ("--by iid --hospitals 2 --sizes 50,10 --min-size 11", 3, "site B would get 10 examples, fewer than"),
        ("--by iid --validation-share 0.5 --test-share 0.5", 2, "must leave something to train on"),
        ("--by iid --assign A=x", 2, "--assign goes with --by column:NAME"),
        ("--by column:label --sizes 1,2", 2, "--sizes goes with --by iid or dirichlet: a column's values have"),
        ("--by quantity --sizes 1,2", 2, "--sizes goes with --by iid or dirichlet: this method draws them"),
        ("--by column:label --names A,B --assign D=x", 2, "--assign names site 'D', which is not among A, B"),
        ("--by iid --format parquet --hospitals 101", 2, "--format parquet is for at most 100 hospitals"),
        ("--by size", 2, "--by: expected iid, quantity, dirichlet, pathological or column:NAME, found 'size'"),
    ],
)
def test_options_that_cannot_be_met(argv, code, message, tmp_path, fails):
    path = write(tmp_path / "x.jsonl", [row | {"label": "xy"[n % 2]} for n, row in enumerate(make_rows(60))])
    assert message in fails(code, "split", "-C", tmp_path / "w", "--dataset", path, *argv.split())
    assert not (tmp_path / "w/data").exists()


def test_what_is_given_twice_is_refused(tmp_path, fails):
    argv = ["split", "-C", tmp_path / "w", "--by", "column:label"]
    assert "--assign gives 'y' to both A and B" in fails(2, *argv, "--assign", "A=x,y;B=y,z")
    assert "--columns: 'question' appears twice" in fails(2, *argv, "--columns", "question=a,question=b")


@pytest.mark.slow
def test_topics_where_there_is_no_label(tmp_path, capsys):
    rng = random.Random(0)
    topics = [WORDS[n * 40 : n * 40 + 40] for n in range(5)]
    rows = [
        {"question": " ".join(rng.choices(topics[n % 5], k=8)), "answer": " ".join(rng.choices(topics[n % 5], k=40))}
        for n in range(1000)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    argv = ["split", "-C", str(tmp_path / "w"), "--dataset", str(path), "--by", "dirichlet", "--topics", "5"]
    assert main([*argv, "--alpha", "0.2", "--near-duplicates", "off"]) == 0
    assert "5 topics of the texts are the labels" in capsys.readouterr().err
    record = SplitRecord.read(tmp_path / "w/data/split.json")
    assert (record.label_column, record.topics) == (None, 5)
    totals = collections.Counter()
    for counts in record.sites.values():
        totals.update(counts.labels)
    assert sum(totals.values()) == 1000
    assert all(abs(totals[f"topic-{n:02d}"] - 200) < 20 for n in range(1, 6))
    assert max(counts.jensen_shannon for counts in record.sites.values()) > 0.3


def test_parquet_files_hold_the_same_rows(tmp_path):
    path = write(tmp_path / "x.jsonl", make_rows(700))
    split(tmp_path / "lines", path, "--by", "iid")
    split(tmp_path / "tables", path, "--by", "iid", "--format", "parquet")
    lines, tables = read_sets(tmp_path / "lines"), read_sets(tmp_path / "tables")
    assert tables["A/train.parquet"] == lines["A/train.jsonl"]
    assert tables["test.jsonl"] == lines["test.jsonl"]
    assert set(tables) == {name.replace(".jsonl", ".parquet") if "/" in name else name for name in lines}
    from fedmed_cli.data.examples import read_jsonl

    found = read_jsonl(tmp_path / "tables/data/B/train.jsonl")
    assert [row.question for row in found] == [row["question"] for row in lines["B/train.jsonl"]]


def test_a_record_of_many_labels_pools_the_rarest(tmp_path, monkeypatch):
    monkeypatch.setattr(composition, "MAX_LABELS", 9)
    path = write(tmp_path / "x.jsonl", make_rows(900, labels=9))
    argv = ["--by", "iid", "--label", "label", "--hospitals", "3", "--near-duplicates", "off"]
    for counts in split(tmp_path / "w", path, *argv).sites.values():
        assert len(counts.labels) == 4
        assert counts.labels["other"] > 0
        assert sum(counts.labels.values()) == counts.total


def test_the_table_shows_sizes_labels_and_what_was_not_searched(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", make_rows(600))
    argv = ["split", "-C", str(tmp_path / "w"), "--dataset", str(path), "--by", "pathological", "--label", "label"]
    assert main([*argv, "--near-duplicates", "off"]) == 0
    out = capsys.readouterr().out
    assert "600 examples (file) were divided for a trial on one machine: pathological" in out
    assert "█ label 0" in out
    assert "Near-duplicates were not searched for" in out
    record = SplitRecord.read(tmp_path / "w/data/split.json")
    for name, counts in record.sites.items():
        sizes, bar = (line for line in out.splitlines() if line.strip().startswith(f"{name} "))
        assert f" {counts.train} " in sizes
        # The bar's marks are as long as the site is large and show only its two labels.
        assert len(set(bar) & set("█▓▒░▚▞▙▟")) == 2


# --- against independent computations -------------------------------------------------------------------


def greedy_dirichlet(labels, count, alpha, seed):
    """Hsu's partition by the textbook: for each label, one group after the other to who lacks most."""
    generator = np.random.Generator(np.random.Philox(seed))
    names = sorted(set(labels))
    while True:
        wanted = generator.dirichlet([alpha] * count, size=len(names))
        home = np.empty(len(labels), dtype=int)
        for shares, name in zip(wanted, names, strict=True):
            rows = [i for i, label in enumerate(labels) if label == name]
            left = shares * len(rows)
            for row in rows:
                home[row] = np.argmax(left)
                left[home[row]] -= 1
        sizes = np.bincount(home, minlength=count)
        if sizes.min() >= max(partition.MIN_GROUPS, len(labels) / count / 10):
            return home


@pytest.mark.parametrize("count", [2, 3, 7])
def test_dirichlet_is_the_textbook_partition(count):
    rng = random.Random(count)
    labels = [f"l{int(5 * rng.random() ** 2)}" for _ in range(1500)]
    names = tuple(dict.fromkeys(labels))
    codes = row_index.Codes(np.array([names.index(label) for label in labels], dtype=np.int32), names)
    groups = number_groups(np.arange(1500, dtype=np.int32), np.arange(1500, dtype=np.uint64))
    found = partition.by_dirichlet(groups, groups.sequence, codes, count, None, None, 0.5, 11)
    assert (found == greedy_dirichlet(labels, count, 0.5, 11)).all()


def textbook_fill(sizes, wanted, room):
    """One group after the other to the site that lacks most of those with room, else of all."""
    lacks, home = list(wanted), []
    for size in sizes:
        open_sites = [site for site in range(len(lacks)) if room[site] > 0] or range(len(lacks))
        site = max(open_sites, key=lambda site: lacks[site])
        lacks[site] -= size
        room[site] -= size
        home.append(site)
    return home


@given(
    st.lists(st.integers(1, 9), max_size=40),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5),
)
def test_fill_is_the_textbook_greedy_division(sizes, sites):
    wanted, room = (dict(enumerate(map(float, column))) for column in zip(*sites, strict=True))
    expected = textbook_fill(sizes, wanted.values(), dict(room))
    assert partition.fill(np.array(sizes, dtype=np.int32), wanted, dict(room)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3)), min_size=2, max_size=9))
def test_the_distance_of_labels_is_that_of_the_textbook(rows):
    first = np.array([count + 1 for count, _ in rows])
    second = np.array([2 * count + more + 1 for count, more in rows])
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    divergence = float(np.sum(p * np.log2(p / middle) + q * np.log2(q / middle))) / 2
    # Of nearly the same shares nothing but rounding is left, which may be less than 0.
    assert round(composition.jensen_shannon(first, second), 6) == round(max(0.0, divergence) ** 0.5, 6)
    assert composition.jensen_shannon(np.array([3, 0]), np.array([0, 5])) == 1
    assert composition.jensen_shannon(first, first) == 0


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_merge_gives_the_components(case):
    count, pairs = case
    first = np.array([a for a, _ in pairs], dtype=np.int32)
    second = np.array([b for _, b in pairs], dtype=np.int32)
    group_of = merge(np.arange(count, dtype=np.int32), first, second)
    parts = [{n} for n in range(count)]
    for a, b in pairs:
        one, two = (next(part for part in parts if n in part) for n in (a, b))
        if one is not two:
            parts.remove(two)
            one |= two
    assert group_of.tolist() == [min(next(part for part in parts if n in part)) for n in range(count)]


WHITE = st.text(st.sampled_from(list(" \t\n\r\u00a0\u2003\x1f")), min_size=1, max_size=3)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=5), st.data())
@pytest.mark.slow
def test_keys_are_equal_for_texts_that_are_equal_up_to_case_and_white_space(words, data):
    def written():
        return "".join(data.draw(WHITE) + data.draw(st.sampled_from([str, str.upper, str.swapcase]))(w) for w in words)

    one, two = (written(), written()), (written(), written())
    same = same_text.text_digest(*one) == same_text.text_digest(*two)
    united = same_text.text_key(*one) == same_text.text_key(*two)
    assert united or not same
    # The check never finds a leak that the division could not know of.
    assert united or leak_check.text_digest(*one) != leak_check.text_digest(*two)
    assert same_text.text_key(one[0], "other") != same_text.text_key(*one)


def test_the_mixed_order_is_a_permutation_that_depends_on_the_seed():
    keys = np.arange(100_000, dtype=np.uint64)
    one, two = row_index.mixed_order(keys, 1), row_index.mixed_order(keys, 2)
    assert len(np.unique(one)) == len(keys)
    assert abs(np.corrcoef(np.argsort(one), np.argsort(two))[0, 1]) < 0.02
    assert abs(np.corrcoef(np.argsort(one), keys)[0, 1]) < 0.02


def test_large_and_small_data_take_different_orders_and_both_are_whole(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl", make_rows(600))
    split(tmp_path / "small", path, "--by", "iid")
    monkeypatch.setattr(row_index, "MAX_SHA_ORDER", 100)
    split(tmp_path / "large", path, "--by", "iid")
    assert where(tmp_path / "small", "number") != where(tmp_path / "large", "number")
    assert where(tmp_path / "small", "number").keys() == where(tmp_path / "large", "number").keys()


# --- any data, any options ------------------------------------------------------------------------------

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
ROW = st.fixed_dictionaries(
    {
        "question": st.text(CHARACTERS, min_size=1, max_size=12),
        "answer": st.one_of(st.text(CHARACTERS, min_size=1, max_size=40), st.none(), st.integers()),
        "label": st.sampled_from(["a", "b", "c", ""]),
    },
    optional={"group": st.sampled_from(["g1", "g2", "g3", "g4", "", "g5"]), "more": st.text(CHARACTERS, max_size=5)},
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=60),
    by=st.sampled_from(["iid", "dirichlet", "quantity", "pathological", "column:label"]),
    hospitals=st.integers(1, 4),
    group=st.booleans(),
    near=st.sampled_from(["off", "0.6"]),
    phi=st.sampled_from(["off", "warn", "redact"]),
    file_format=st.sampled_from(["jsonl", "parquet"]),
    sizes=st.booleans(),
    seed=st.integers(0, 2**40),
)
@pytest.mark.slow
def test_every_example_is_in_one_set_or_in_the_counted_rest(
    rows, by, hospitals, group, near, phi, file_format, sizes, seed, tmp_path_factory
):
    root = tmp_path_factory.mktemp("any")
    rows = [row | {"number": str(n), "group": row.get("group", "")} for n, row in enumerate(rows)]
    path = write(root / "x.jsonl", rows)
    argv = ["split", "--dataset", path, "--by", by, "--label", "label", "--hospitals", hospitals, "--seed", seed]
    argv += ["--near-duplicates", near, "--phi", phi, "--format", file_format, "--max-bad", "1"]
    argv += ["--group-by", "group"] if group else []
    if sizes and by in ("iid", "dirichlet"):
        argv += ["--sizes", ",".join(["3"] * hospitals)]
    codes = [main([*map(str, argv), "-q", "-C", str(root / name)]) for name in ("one", "two")]
    assert codes[0] == codes[1]
    if codes[0]:
        assert codes[0] in (2, 3)  # too few rows, groups or labels, each said
        assert not (root / "one/data").exists()
        return
    record = SplitRecord.read(root / "one/data/split.json")
    good = [row for row in rows if isinstance(row["answer"], str) and row["answer"].strip() and row["question"].strip()]
    assert sum(bad.count for bad in record.bad_rows.values()) == len(rows) - len(good)
    numbers = [row["number"] for found in read_sets(root / "one").values() for row in found]
    assert len(numbers) == len(set(numbers)) == record.num_examples
    assert set(numbers) <= {row["number"] for row in good}
    assert len(good) - len(numbers) == record.num_left_out
    one, two = snapshot(root / "one/data"), snapshot(root / "two/data")
    for files in (one, two):
        body = json.loads(files["split.json"])
        del body["run"]
        files["split.json"] = body
    assert one == two
