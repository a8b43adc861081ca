"""Kills, full disks and two processes at once: nothing is lost, nothing half-made is left, the bytes are the same."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.crashing import crash, snapshot

from fedmed_cli.cli.app import main
from fedmed_cli.workspace import Workspace

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="these tests fork")


@pytest.mark.slow
def test_aggregate_killed_at_every_write_and_at_random_and_two_at_once(trained_once, tmp_path):
    argv = ["aggregate", "-q", "--weights", "tokens"]
    tasks = [["every_write", "kill"], ["every_write", "full", 5], ["random_kills", 6, 1], ["two_at_once", 12]]
    result = crash(tmp_path, trained_once, argv, ["rounds/"], *tasks)
    assert result["every_write kill"]["points"] > 40
    assert {"write", "fsync", "rename", "mkdir"} <= set(result["every_write kill"]["kinds"])
    assert result["random_kills 6 1"]["killed"] > 0
    assert sum(result["two_at_once 12"].values()) == 12


@pytest.mark.slow
def test_train_local_killed_at_every_write_and_at_random(trained_once, tiny_base, tmp_path):
    argv = ["train-local", "-q", "--site", "A", "--max-steps", "3", "--save-steps", "1", "--max-eval-samples", "2"]
    argv += ["--base", str(tiny_base)]
    result = crash(tmp_path, trained_once, argv, ["adapters/A"], ["every_write", "kill", 4], ["random_kills", 6, 1])
    assert result["every_write kill 4"]["points"] > 6
    assert result["random_kills 6 1"]["killed"] > 1


@pytest.mark.slow
def test_round_killed_at_random(split_once, tiny_base, tmp_path):
    argv = ["round", "-q", "--rounds", "1", "--max-steps", "2", "--save-steps", "1", "--max-eval-samples", "2"]
    argv += ["--base", str(tiny_base)]
    result = crash(tmp_path, split_once, argv, ["rounds/"], ["random_kills", 3, 1])
    assert result["random_kills 3 1"]["killed"] > 0


@pytest.mark.slow
def test_a_hospitals_own_file_is_divided_whole_or_not_at_all(tiny_base, tmp_path, split_once):
    """The folder data/SITE is replaced whole, so that a kill never leaves one set of the old and one of the new."""
    home = tmp_path / "home"
    argv = ["init", "-q", "--names", "A,B", "--base", str(tiny_base), "--lora-r", "4", "--max-length", "256"]
    assert main([*argv, "-C", str(home)]) == 0
    rows = "".join((split_once / f"data/{site}/train.jsonl").read_text() for site in "ABC")
    (tmp_path / "own.jsonl").write_text(rows)
    argv = ["train-local", "-q", "--site", "B", "--data", str(tmp_path / "own.jsonl"), "--max-steps", "1"]
    argv += ["--base", str(tiny_base), "--max-eval-samples", "2"]
    result = crash(tmp_path, home, argv, ["adapters/"], ["every_write", "kill", 8])
    assert result["every_write kill 8"]["points"] > 3


def test_a_replacement_that_was_complete_is_put_in_place_by_the_next_command(trained_workspace):
    target = trained_workspace.contribution("A")
    before = snapshot(target)
    target.rename(trained_workspace.adapters / ".A.123.new.tmp")
    (trained_workspace.adapters / ".B.123.new.tmp").mkdir()
    said = []
    with Workspace(trained_workspace.root, said.append).lock():
        pass
    assert snapshot(target) == before
    assert sorted(path.name for path in trained_workspace.adapters.iterdir()) == ["A", "B", "C"]
    assert any("adapters/A: put in place" in line for line in said)
    assert any("removed adapters/.B.123.new.tmp" in line for line in said)


@pytest.mark.slow
def test_a_file_size_limit_leaves_the_old_state(trained_once, tmp_path):
    """RLIMIT_FSIZE makes real writes fail with EFBIG, at whichever file grows beyond it."""
    import resource

    limits = [0, 100, 700, 2000]
    for limit in limits:
        root = shutil.copytree(trained_once, tmp_path / str(limit))
        before = snapshot(root)
        done = subprocess.run(
            [sys.executable, "-m", "fedmed_cli", "aggregate", "-q", "--weights", "tokens", "-C", root],
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 5, done.stderr
        assert "no space left on the disk" in done.stderr
        assert snapshot(root) == before
        assert not list(root.rglob(".*.tmp"))


def test_written_files_follow_the_umask(trained_workspace):
    old = os.umask(0o027)
    try:
        assert main(["aggregate", "-q", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 0
    finally:
        os.umask(old)
    for path in (trained_workspace.rounds / "001").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
