"""Far too many files, or files of a strange kind, where commands look for a few."""

import json
import os
import shutil
import subprocess
import tracemalloc

import pytest
from helpers import factories

from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX
from fedmed_cli.cli.app import main
from fedmed_cli.federation.doctor import make_check
from fedmed_cli.federation.doctor.findings import Check, Examined, Request
from fedmed_cli.federation.doctor.machine import check_clock
from fedmed_cli.federation.doctor.plan import check_adapters, check_versions
from fedmed_cli.workspace import Workspace

MANY = 40


@pytest.fixture
def workspace(tmp_path):
    return factories.make_workspace(tmp_path / "work", factories.without_keys(factories.make_plan()), 1)


@pytest.fixture
def shows(workspace, capsys):
    def run(command):
        code = main([*command.split(), "-C", str(workspace.root)])
        return code, "".join(capsys.readouterr())

    return run


def fill(workspace, name):
    for number in range(MANY):
        (workspace.adapters / name.format(number)).write_bytes(b"junk")


def doctor(workspace, look, plan):
    examined = Examined(workspace, Request(), None)
    examined.plan = plan
    return make_check(Check("x", look, "do that"), examined)


@pytest.mark.parametrize("command", ["aggregate --dry-run", "status", "verify"])
def test_of_many_plain_files_the_first_are_named_and_the_rest_is_counted(workspace, shows, command):
    fill(workspace, "junk-{:02d}")
    code, shown = shows(command)
    assert code == 0
    assert [number for number in range(MANY) if f"junk-{number:02d}" in shown] == list(range(10))
    assert f"and {MANY - 10} more" in shown


@pytest.mark.parametrize("command", ["status", "verify", "report"])
@pytest.mark.slow
def test_of_many_bundles_that_are_none_the_first_are_named_and_the_rest_is_counted(workspace, shows, command):
    fill(workspace, "junk-{:02d}" + BUNDLE_SUFFIX)
    code, shown = shows(command)
    assert code == (3 if command == "verify" else 0)
    assert {number for number in range(MANY) if f"junk-{number:02d}" in shown} == set(range(10))
    assert f"and {MANY - 10} more" in shown
    if command == "status":
        assert len(json.loads(shows("status --json")[1])["refused"]) == MANY
    if command == "report":
        assert f"junk-{MANY - 1}" in (workspace.reports / "report.html").read_text()


def test_the_doctor_names_the_first_of_many(workspace):
    fill(workspace, "junk-{:02d}")
    finding, _ = doctor(workspace, check_adapters, workspace.read_plan())
    assert "junk-09" in finding.seen
    assert "junk-10" not in finding.seen
    assert f"and {MANY - 10} more" in finding.seen


@pytest.mark.parametrize("look", [check_clock, check_versions])
@pytest.mark.parametrize("text", ["[]", "{}", "0", "[" * 5000, '{"fedmed_version": 1}', ""])
def test_a_record_that_is_none_stops_no_check(workspace, look, text):
    (workspace.adapters / "X").mkdir()
    (workspace.adapters / "X/contribution.json").write_text(text)
    finding, _ = doctor(workspace, look, workspace.read_plan())
    assert finding.level == "PASS"


def test_a_long_version_is_cut(workspace):
    path = workspace.contribution("B") / "contribution.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"run": {"torch": "9" * 10_000}}))
    finding, _ = doctor(workspace, check_versions, workspace.read_plan())
    assert finding.level == "WARN"
    assert len(finding.seen) < 200


@pytest.mark.parametrize("kind", ["pipe", "link", "large", "words", "missing"])
def test_who_holds_the_lock_is_a_number_or_unknown(workspace, shows, kind):
    workspace.make_private()
    path = workspace.private / "lock.pid"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind != "missing":
        path.write_text("1" * 1000 if kind == "large" else "1\x1b[2J")
    assert workspace.lock_holder() is None
    code, shown = shows("status")
    assert code == 0
    assert "works here" not in shown
    path.unlink(missing_ok=True)
    path.write_text("123\n")
    assert "process 123 works here" in shows("status")[1]


@pytest.mark.parametrize("values", [{}, {"event": 1}, {"event": "round", "coordinator_before": "x"}])
@pytest.mark.slow
def test_a_metric_that_is_none_is_named_or_not_shown(workspace, shows, values):
    line = {"format": "fedmed/metric", "version": 1, "round": 1, "coordinator_after": 2.0} | values
    (workspace.root / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for command in ("status", "report"):
        code, shown = shows(command)
        assert code == 0
        assert ("metrics.jsonl:1: names no event" in shown) == (line.get("event") != "round")
    assert shows("verify")[0] == (0 if line.get("event") == "round" else 3)


def test_rounds_that_are_not_here_are_one_note_and_not_looked_for_one_by_one(workspace, shows, monkeypatch):
    """A coordinator's key may file round 999,999."""
    (workspace.rounds / "999999/global").mkdir(parents=True)
    asked, real = [], Workspace.round
    monkeypatch.setattr(Workspace, "round", lambda place, number: asked.append(number) or real(place, number))
    code, shown = shows("verify")
    assert code == 3
    assert "rounds 2 to 999998 are not here, so the lineage ends at round 999999" in shown
    shutil.rmtree(workspace.rounds / "001")
    assert "rounds 1 to 999998 are not here, so the lineage ends at round 999999" in shows("verify")[1]
    shows("chat x --adapter A")
    assert len(set(asked)) < 10


def test_json_steers_no_terminal_either(workspace, shows):
    name = "A\x9b2J\u202e\x7f"
    (workspace.adapters / name).mkdir()
    code, shown = shows("status --json")
    assert code == 0
    assert [one["path"] for one in json.loads(shown)["refused"]] == [f"adapters/{name}"]
    assert not set("\x9b\u202e\x7f") & set(shown)


@pytest.mark.parametrize("command", ["status", "status --json", "report", "verify", "aggregate --dry-run"])
@pytest.mark.slow
def test_names_that_are_not_utf_8(workspace, shows, command):
    for place, name in (
        (workspace.adapters, b"\xff.fedmed.tar"),
        (workspace.rounds, b"\xfe"),
        (workspace.root, b"\xfd"),
    ):
        (place / os.fsdecode(name)).write_bytes(b"junk")
    code, shown = shows(command)
    assert code == (3 if command in ("verify", "aggregate --dry-run") else 0)
    assert "this is a bug" not in shown


def test_folders_nested_deeper_than_python_goes(workspace, shows, monkeypatch):
    with monkeypatch.context() as here:
        here.chdir(workspace.adapters)
        for _ in range(1200):
            os.mkdir("a")
            os.chdir("a")
    code, shown = shows("verify")
    subprocess.run(["rm", "-rf", workspace.adapters / "a"], check=True)
    assert code == 3
    assert "adapters/a: holds 'a', which does not belong" in " ".join(shown.split())


@pytest.mark.parametrize("name", ["scores/.A.json.123.tmp", "late/001/.A.abcdefgh.tmp"])
def test_what_an_interrupted_command_left_is_named_and_removed(workspace, shows, name):
    path = workspace.root / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    code, shown = shows("verify")
    assert code == 0
    assert f"{name}: left by an interrupted command" in shown
    with workspace.lock():
        assert not path.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", ".fedmed/audit.jsonl"])
def test_a_file_of_line_feeds_takes_no_more_memory_than_its_bytes(workspace, fails, name):
    workspace.make_private()
    (workspace.root / name).write_bytes(b"\n" * 20_000_000)  # as a list of lines eight times as many
    tracemalloc.start()
    fails(3, "verify", "-C", workspace.root)
    assert tracemalloc.get_traced_memory()[1] < 70_000_000
    tracemalloc.stop()
