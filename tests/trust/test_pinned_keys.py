"""Where the plan pins a key, nothing else is taken from its owner: by no command, wherever the folder lies."""

import json
import shutil

import pytest
from helpers import factories
from helpers.bad_files import RECORD
from helpers.crashing import snapshot

from fedmed_cli.adapters import archive
from fedmed_cli.errors import TrustError
from fedmed_cli.records import signatures
from fedmed_cli.workspace import Workspace


@pytest.fixture(scope="session")
def signed_round(tmp_path_factory):
    """A workspace of one signed round, with signed contributions to the next in its mailbox, and test examples."""
    workspace = factories.make_workspace(tmp_path_factory.mktemp("pinned") / "work", factories.make_plan(), 1)
    rows = [{"question": f"q {number}", "answer": f"a {number}"} for number in range(10)]
    workspace.data.mkdir()
    (workspace.data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace.root


@pytest.fixture
def workspace(signed_round, tmp_path, coordinators_key):
    factories.write_key(coordinators_key / "a", factories.SIGNERS["A"])
    return Workspace(shutil.copytree(signed_round, tmp_path / "work"))


def pin_only(workspace, *names):
    plan = workspace.read_plan()
    plan = factories.with_keys(plan, {name: plan.sites.keys[name] for name in names})
    factories.write_plan(workspace, plan)
    workspace.remember_pins(plan)  # as 'fedmed keys accept' does


def record_of(folder):
    return next(path for path in (folder / RECORD, folder / "aggregate.json") if path.exists())


def unsign(folder):
    record = record_of(folder)
    record.with_name(f"{record.name}.sig").unlink()


def sign_as_another(folder):
    record = record_of(folder)
    data = signatures.sign(factories.SIGNERS["stranger"], record.read_bytes())
    record.with_name(f"{record.name}.sig").write_bytes(data)


def drop_record(folder):
    unsign(folder)
    record_of(folder).unlink()


# Whose key is pinned, which folder is spoiled, and what reads it; {} is that folder.
ARCHIVED, MAILED, GLOBAL = "rounds/001/B", "adapters/B", "rounds/001/global"
READERS = {
    "chat with an archived adapter": ("B", ARCHIVED, "chat hello --adapter B"),
    "chat with a path": ("B", ARCHIVED, "chat hello --adapter {}"),
    "chat with the global adapter": ("coordinator", GLOBAL, "chat hello"),
    "chat with a global path": ("coordinator", GLOBAL, "chat hello --adapter {}"),
    "compare with the archive": ("B", ARCHIVED, "compare"),
    "compare with the global adapter": ("coordinator", GLOBAL, "compare"),
    "compare a path": ("B", MAILED, "compare --adapter x={}"),
    "compare a path of what was made alone": ("B", MAILED, "compare --alone B={}"),
    "aggregate the mailbox": ("B", MAILED, "aggregate"),
    "aggregate paths": ("B", MAILED, "aggregate {} adapters/A"),
    "aggregate an archived round": ("B", ARCHIVED, "aggregate {} rounds/001/A --output again"),
    "aggregate from a global adapter": ("coordinator", GLOBAL, "aggregate"),
    "train from the archive": ("coordinator", GLOBAL, "train-local --site A"),
    "train from a path": ("coordinator", GLOBAL, "train-local --site A --global {}"),
    "verify a path": ("B", MAILED, "verify {}"),
}


@pytest.mark.parametrize("spoil", [unsign, sign_as_another], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("reader", READERS)
def test_an_unsigned_or_otherwise_signed_folder_is_refused(reader, spoil, workspace, monkeypatch, fails):
    name, folder, command = READERS[reader]
    pin_only(workspace, name)
    spoil(workspace.root / folder)
    before = snapshot(workspace.root)
    monkeypatch.chdir(workspace.root)
    message = fails(7, *command.format(folder).split())
    owner = "the coordinator" if name == "coordinator" else "site B"
    reason = {"unsign": f"but the plan pins a key for {owner}", "sign_as_another": f"the plan expects {owner}'s key"}
    assert message.startswith(folder)
    assert reason[spoil.__name__] in message
    assert snapshot(workspace.root) == before


@pytest.mark.parametrize("command", ["chat hello --adapter B", "compare"])
@pytest.mark.parametrize("spoil", [unsign, sign_as_another, drop_record], ids=lambda spoil: spoil.__name__)
def test_a_contribution_in_the_mailbox_is_refused_as_one_in_the_archive(command, spoil, workspace, monkeypatch, fails):
    shutil.rmtree(workspace.rounds)
    pin_only(workspace, "B")
    spoil(workspace.contribution("B"))
    monkeypatch.chdir(workspace.root)
    assert fails(3 if spoil is drop_record else 7, *command.split()).startswith(MAILED)


@pytest.mark.parametrize("command", ["chat hello --adapter {}", "compare --adapter x={}", "compare --alone B={}"])
def test_a_folder_without_a_record_is_refused_where_any_key_is_pinned(command, workspace, monkeypatch, fails):
    pin_only(workspace, "A")
    drop_record(workspace.contribution("B"))
    monkeypatch.chdir(workspace.root)
    assert "has no record, so nothing proves who made it" in fails(7, *command.format(MAILED).split())


def test_a_contribution_of_another_site_is_not_taken_for_this_one(workspace, monkeypatch, fails):
    shutil.rmtree(workspace.rounds)
    shutil.rmtree(workspace.contribution("B"))
    workspace.contribution("A").rename(workspace.contribution("B"))
    monkeypatch.chdir(workspace.root)
    message = fails(7, "chat", "hello", "--adapter", "B")
    assert message == "adapters/B: expected a contribution of site B, found one of site A"


def test_a_signed_record_of_the_round_vouches_for_a_contribution_from_before_its_key_was_pinned(workspace):
    plan = workspace.read_plan()
    stranger = factories.SIGNERS["stranger"].public
    new_key = factories.with_keys(plan, plan.sites.keys | {"B": stranger})
    folder = archive.archived_contribution(workspace, new_key, 1, "B")
    assert folder.signer == factories.SIGNERS["B"].public
    only_b = factories.with_keys(plan, {"B": stranger})
    with pytest.raises(TrustError, match="the plan expects site B's key"):
        archive.archived_contribution(workspace, only_b, 1, "B")
    unsign(workspace.round(1) / "B")
    with pytest.raises(TrustError, match="when it was aggregated, found no signature"):
        archive.archived_contribution(workspace, new_key, 1, "B")
