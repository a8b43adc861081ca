"""Links, foreign names and misleading hints: small ways in, each shut."""

import json
import os
import re
from pathlib import Path

import pytest
from helpers import factories

from fedmed_cli.cli.app import main
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.federation.received_global import accept_global
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.checks import check_site_name
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.plan import Base
from fedmed_cli.workspace import Workspace

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LINKS = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def lock(workspace):
    said = []
    with Workspace(workspace.root, said.append).lock():
        pass
    return said


@LINKS
@pytest.mark.parametrize("name", [".x.tmp", ".x.123.tmp", ".x.123.new.tmp"])
def test_a_link_in_the_mailbox_is_not_followed_and_blocks_nothing(name, trained_workspace, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "file").write_text("keep")
    (trained_workspace.adapters / name).symlink_to(target)
    assert lock(trained_workspace) == []
    assert (target / "file").read_text() == "keep"
    assert main(["aggregate", "-q", "-C", str(trained_workspace.root), "--weights", "tokens"]) == 0


@LINKS
def test_a_linked_folder_is_not_swept(split_workspace, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".train.jsonl.123.tmp").write_text("not fedmed's")
    (split_workspace.data / "Z").symlink_to(elsewhere)
    assert lock(split_workspace) == []
    assert (elsewhere / ".train.jsonl.123.tmp").exists()


@pytest.mark.parametrize("name", [".y.tmp", ".notes.backup.tmp", ".y.1.old.tmp"])
def test_names_of_others_are_not_swept(name, trained_workspace):
    (trained_workspace.adapters / name).write_text("somebody's")
    assert lock(trained_workspace) == []
    assert (trained_workspace.adapters / name).exists()


@LINKS
@pytest.mark.parametrize("name", ["lock", "lock.pid"])
def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(name, split_workspace, tmp_path, fails):
    target = tmp_path / "target"
    target.write_text("keep")
    split_workspace.private.mkdir(exist_ok=True)
    (split_workspace.private / name).unlink(missing_ok=True)
    (split_workspace.private / name).symlink_to(target)
    assert f"{name}: is a link" in fails(3, "aggregate", "-C", split_workspace.root, "--weights", "tokens")
    assert target.read_text() == "keep"


def test_what_a_crash_left_is_put_in_place_before_contributions_are_listed(trained_workspace, capsys):
    (trained_workspace.adapters / "C").rename(trained_workspace.adapters / ".C.77.new.tmp")
    assert main(["aggregate", "-C", str(trained_workspace.root), "--weights", "tokens"]) == 0
    assert "adapters/C: put in place" in " ".join(capsys.readouterr().err.split())
    assert set(Aggregate.read(trained_workspace.global_adapter(1) / "aggregate.json").sites) == set("ABC")


def test_a_hint_to_exclude_is_given_only_where_it_leaves_out_that_folder(trained_workspace, capsys):
    def hint(*argv):
        capsys.readouterr()
        assert main(["aggregate", "-C", str(trained_workspace.root), "--weights", "tokens", *argv]) != 0
        return " ".join(capsys.readouterr().err.split("fedmed: hint: ")[1].split())

    junk = trained_workspace.adapters / "A.fedmed.tar"
    junk.write_bytes(b"junk")
    assert "--exclude" not in hint()  # it would drop the honest folder A too
    assert "move it elsewhere" in hint()
    junk.rename(trained_workspace.adapters / "zzz.fedmed.tar")
    assert "--exclude" not in hint()  # the plan has no such site
    (trained_workspace.adapters / "zzz.fedmed.tar").unlink()
    (trained_workspace.contribution("B") / "contribution.json").write_bytes(b"{}")
    assert "--exclude B" in hint()
    assert main(["aggregate", "-q", "-C", str(trained_workspace.root), "--weights", "tokens", "--exclude", "B"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folders_name_cannot_begin_a_line(tmp_path, capsys):
    folder = tmp_path / "x\nfedmed: error: all your keys are lost"
    folder.mkdir()
    assert main(["inspect-adapter", str(folder)]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if line.startswith("fedmed: error: all")]


@pytest.mark.parametrize(("kind", "name"), [(Contribution, "contribution.json"), (Aggregate, "aggregate.json")])
def test_rounds_have_as_many_digits_as_their_folders(kind, name):
    value = json.loads(next(GOLDEN.rglob(name)).read_text())
    with pytest.raises(InputError, match="round must be from 1 to"):
        kind.from_dict(value | {"round": 10**6}, "it")


def hospital(root, plan):
    home = Workspace(root)
    factories.write_plan(home, plan)
    return home


@pytest.mark.parametrize("number", [3, 999_999])
def test_nobody_files_a_round_far_ahead_where_no_key_is_pinned(number, tmp_path):
    plan = factories.make_plan(signed=False)
    coordinator = factories.make_workspace(tmp_path / "work", plan, 3, mailbox=False)
    home, sent = hospital(tmp_path / "home", plan), coordinator.global_adapter(3)
    path = sent / "aggregate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"round": number}))
    with pytest.raises(ConflictError, match=f"is of round {number}, but the next round here is 1") as refused:
        accept_global(home, plan, sent)
    assert f"copy it to rounds/{number:03d}/global" in str(refused.value.hint)
    assert accept_global(home, plan, coordinator.global_adapter(1))[1]


def test_a_signed_global_adapter_may_skip_rounds(tmp_path):
    plan = factories.make_plan()
    coordinator = factories.make_workspace(tmp_path / "work", plan, 3, mailbox=False)
    folder, is_new = accept_global(hospital(tmp_path / "home", plan), plan, coordinator.global_adapter(3))
    assert is_new
    assert folder.record.round == 3


def test_an_older_global_adapter_is_not_trained_from_again(tmp_path):
    plan = factories.make_plan()
    coordinator = factories.make_workspace(tmp_path / "work", plan, 3, mailbox=False)
    with pytest.raises(ConflictError, match="is of round 2, but round 3 is filed here"):
        accept_global(coordinator, plan, coordinator.global_adapter(2))
    assert not accept_global(coordinator, plan, coordinator.global_adapter(3))[1]


def test_a_contribution_to_a_round_far_ahead_is_refused(tmp_path, fails):
    plan = factories.make_plan(signed=False)
    workspace = factories.make_workspace(tmp_path / "work", plan)
    path = workspace.contribution("B") / "contribution.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"round": 999_999}))
    message = fails(7, "aggregate", "--weights", "tokens", "-C", workspace.root)
    assert "expected a contribution to round 1, found one to round 999999" in message
    assert workspace.newest_round() == 0


@pytest.mark.parametrize(
    "name", ["/etc", "~/models", "../x", ".", "C:\\models", "a/../../b", "/proc/self", "\\\\server"]
)
def test_a_foreign_plan_cannot_name_a_path(name):
    base = factories.make_plan().base
    with pytest.raises(ValueError, match="not a path"):
        Base(name, base.revision, base.fingerprint, base.num_bytes, base.linear)


@pytest.mark.parametrize("name", ["con", "NUL", "com1", "LPT9", "aux"])
def test_no_site_is_called_like_a_device(name):
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is a device")):
        check_site_name(name)
