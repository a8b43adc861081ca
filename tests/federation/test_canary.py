"""A thousand marked strings in the training data: no byte of one in anything that leaves, or on the screen."""

import errno
import json
import os
import shutil

import pytest
from conftest import NUM_EXAMPLES

from fedmed_cli.cli.app import main

NUM_MARKS = 1000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def marked(tiny_base, tmp_path_factory):
    """A workspace whose every example holds marks; the file it was split from; the marks."""
    folder = tmp_path_factory.mktemp("marked")
    marks = [f"Zq{number:04d}Kx{number * 7919 % 10007:05d}" for number in range(NUM_MARKS)]
    each = -(-NUM_MARKS // NUM_EXAMPLES)
    rows = []
    for number in range(NUM_EXAMPLES):
        own = marks[number * each : (number + 1) * each] or ["a", "plain", f"k{number}"]
        rows.append(
            {"question": f"what is {own[0]}?", "answer": f"it is {' '.join(own[1:])} {number}", "kind": own[-1]}
        )
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = folder / "work"
    argv = [
        "split",
        "--dataset",
        folder / "data.jsonl",
        "--label",
        "kind",
        "--by",
        "iid",
        "--base",
        tiny_base,
        "--lora-r",
        "4",
    ]
    argv += ["--max-steps", "2", "--max-length", "256", "-C", root, "-q"]
    assert main([str(part) for part in argv]) == 0
    return root, folder, marks


def fragments(marks):
    """Each mark whole, and its halves: a record may not hold a part of one either."""
    return [part.encode() for mark in marks for part in (mark, mark[:6], mark[6:])]


def test_no_mark_in_any_record_metric_log_or_error(marked, tiny_base, capfd, monkeypatch):
    root, folder, marks = marked
    base = ["-C", str(root), "--base", str(tiny_base)]
    inner = ["-C", str(root)]
    assert main(["train-local", "--site", "A", "-v", "--json", *base]) == 0
    assert main(["round", "-v", *base]) == 0
    assert main(["compare", "--no-answers", "-v", *base]) == 0
    assert main(["verify", "--recompute", "-v", *inner]) == 0
    assert main(["inspect-adapter", str(root / "rounds/001/global"), "--modules", *inner]) == 0
    assert main(["train-local", "--site", "B", "-v", *base]) == 0

    # Runs that are made to fail: bad data, a full disk, a bug in the middle of the data, Ctrl-C.
    lines = (folder / "data.jsonl").read_text().splitlines()
    spoiled = {
        "torn.jsonl": "\n".join(lines)[:-9],
        "columns.jsonl": "\n".join(lines).replace('"question"', '"frage"'),
        "number.jsonl": "\n".join(lines[:50]).replace('"answer": "', '"answer": 7, "x": "', 1),
        "empty.jsonl": "\n".join([*lines[:9], lines[9].replace("it is", " ").split('"answer"')[0] + '"answer": ""}']),
        "ragged.csv": "question,answer\n" + "\n".join(f"{mark},a,b" for mark in marks),
        "list.json": json.dumps(list(lines)),
        "broken.json": json.dumps(lines)[:-20],
        "tiny.jsonl": "\n".join(lines[:2]),
    }
    for name, text in spoiled.items():
        (folder / name).write_text(text)
        assert main(["split", "--dataset", str(folder / name), "-C", str(folder / f"of-{name}")]) == 3, name
        train = ["train-local", "--site", "A", "--data", str(folder / name), "--base", str(tiny_base)]
        assert main([*train, "-C", str(root)]) == 6, name  # data/A is of `split`
        own = folder / f"own-{name}"
        own.mkdir()
        shutil.copy(root / "federation.toml", own)
        assert main([*train, "-C", str(own)]) == 3, name
    from fedmed_cli.federation import site

    def broken(name):
        def fail(*args, **kwargs):
            raise ValueError(f"cannot use {marks[0]} {marks[1]} in {name}")

        return fail

    for module, name in ((site.prompts, "encode"), (site, "train"), (site.measuring, "prepare")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken(name))
            assert main(["train-local", "--site", "A", "-v", *base]) == 1
    with monkeypatch.context() as patch:

        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt(marks[3])

        patch.setattr(site, "train", interrupted)
        assert main(["train-local", "--site", "A", *base]) == 130
    with monkeypatch.context() as patch:

        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        assert main(["train-local", "--site", "A", *base]) == 5

    out, err = capfd.readouterr()
    seen = {"the screen": (out + err).encode()}
    data = root / "data"
    for path in [*root.rglob("*"), *folder.glob("of-*/**/*")]:
        if path.is_file() and not (data in path.parents and path.suffix == ".jsonl"):
            seen[str(path.relative_to(folder))] = path.read_bytes() + path.name.encode()
    assert len(seen) > 40
    assert "this is a bug in fedmed" in out + err
    parts = fragments(marks)
    for name, content in seen.items():
        found = [part for part in parts if part in content]
        assert not found, (name, found[:3])


def test_this_test_would_notice(marked):
    root, _, marks = marked
    content = (root / "data/A/train.jsonl").read_bytes()
    assert sum(part in content for part in fragments(marks)) > 300
