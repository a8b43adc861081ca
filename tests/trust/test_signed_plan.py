"""A plan that pins the coordinator's key must be signed with it, for every command."""

import dataclasses
import itertools
import json
import shutil
import subprocess

import pytest
from helpers import factories

from fedmed_cli.cli.app import COMMANDS, main
from fedmed_cli.records.signatures import sign
from fedmed_cli.workspace import PLAN_SIGNATURE_NAME, Workspace, durable

HINT = "ask the coordinator for federation.toml and federation.toml.sig"
# What else a command is asked for before it reads the plan. Those that are left out read none.
ARGUMENTS = {
    "personalise": ["--site", "A"],
    "split": ["--names", "A,B,C"],
    "train-local": ["--site", "A"],
    "compare merge": ["a.json", "b.json"],
    "compare score": ["--site", "A"],
    "chat": ["a question"],
    "export": ["global", "elsewhere", "--to", "vllm"],
    "inspect-adapter": ["adapters/B"],
    "pack": ["adapters/B"],
    "audit": ["--site", "A"],
    "keys trust": ["B", factories.SIGNERS["B"].public],
}
WITHOUT_PLAN = {"init", "privacy", "keys", "keys new", "keys sign"}


@pytest.fixture
def workspace(tmp_path, monkeypatch, coordinators_key):
    factories.write_key(coordinators_key / "stranger", factories.SIGNERS["stranger"])
    workspace = factories.make_workspace(tmp_path / "work", factories.make_plan())
    monkeypatch.chdir(workspace.root)
    return workspace


def signature(workspace):
    return workspace.root / PLAN_SIGNATURE_NAME


def unsign(workspace):
    signature(workspace).unlink()


def sign_as_a_stranger(workspace):
    signature(workspace).write_bytes(sign(factories.SIGNERS["stranger"], workspace.plan_path.read_bytes()))


def change_a_byte(workspace):
    plan = workspace.plan_path.read_text()
    assert "min_sites = 2" in plan
    workspace.plan_path.write_text(plan.replace("min_sites = 2", "min_sites = 1"))


def take_another_plans_signature(workspace):
    other = dataclasses.replace(
        factories.make_plan(), training=dataclasses.replace(factories.make_plan().training, seed=8)
    )
    signature(workspace).write_bytes(sign(factories.SIGNERS["coordinator"], other.to_bytes()))


def strip_the_coordinators_key(workspace):
    plan = factories.make_plan()
    keys = {name: key for name, key in plan.sites.keys.items() if name != "coordinator"}
    plan = factories.with_keys(plan, keys)
    workspace.plan_path.write_bytes(plan.to_bytes())


def sign_in_a_link(workspace):
    signature(workspace).rename(workspace.root.parent / "sig")
    signature(workspace).symlink_to(workspace.root.parent / "sig")


ATTACKS = {
    "no signature": (unsign, 7, "is not signed, but pins the coordinator's key: federation.toml.sig is missing"),
    "a stranger's": (sign_as_a_stranger, 7, "found a signature with " + factories.SIGNERS["stranger"].fingerprint),
    "a changed plan": (change_a_byte, 7, "the signature does not hold for federation.toml"),
    "another plan's": (take_another_plans_signature, 7, "the signature does not hold for federation.toml"),
    "key stripped": (strip_the_coordinators_key, 7, "is a signature, but the plan pins no key for the coordinator"),
    "a link": (sign_in_a_link, 3, "federation.toml.sig: is a link"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_such_a_plan_is_refused_and_not_remembered(attack, workspace, fails):
    change, code, message = ATTACKS[attack]
    change(workspace)
    assert message in fails(code, "verify", "-C", workspace.root)
    assert not (workspace.private / "pinned.json").exists()
    assert message in fails(code, "keys", "accept", "-C", workspace.root)
    assert not (workspace.private / "pinned.json").exists()


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_PLAN))
def test_every_command_refuses_it_before_any_work(command, workspace, capsys):
    unsign(workspace)
    assert main([*command.split(), *ARGUMENTS.get(command, []), "-C", str(workspace.root)]) == 7
    shown = " ".join(" ".join(capsys.readouterr()).split())  # doctor's findings are its result
    assert "federation.toml.sig is missing" in shown
    assert HINT in shown


def test_a_signed_plan_is_taken_and_ssh_keygen_agrees(workspace):
    assert main(["aggregate", "--weights", "tokens", "-q", "-C", str(workspace.root)]) == 0
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen here")
    (workspace.root / "allowed").write_text(f"it {factories.SIGNERS['coordinator'].public}\n")
    argv = ["ssh-keygen", "-Y", "verify", "-f", "allowed", "-I", "it", "-n", "fedmed", "-s", PLAN_SIGNATURE_NAME]
    subprocess.run(argv, input=workspace.plan_path.read_bytes(), check=True, capture_output=True)


def test_signing_pins_the_key_and_changes_by_command_are_signed_again(tmp_path, workspace, capsys):
    place = Workspace(tmp_path / "new")
    factories.write_plan(place, factories.make_plan(signed=False))
    digest = place.read_plan().digest
    assert main(["keys", "sign", "--json", "-C", str(place.root)]) == 0
    coordinator = factories.SIGNERS["coordinator"]
    assert json.loads(capsys.readouterr().out) == {
        "plan": digest,
        "fingerprint": coordinator.fingerprint,
        "changed": ["coordinator"],
    }
    assert place.read_plan().sites.keys == {"coordinator": coordinator.public}
    assert main(["keys", "trust", "B", factories.SIGNERS["B"].public, "-C", str(place.root)]) == 0
    assert "send federation.toml and federation.toml.sig to all" in " ".join(capsys.readouterr().out.split())
    assert place.read_plan().sites.keys["B"] == factories.SIGNERS["B"].public
    change_a_byte(place)
    assert main(["keys", "sign", "-q", "-C", str(place.root)]) == 0
    assert place.read_plan().sites.min_sites == 1


def test_comments_stay_where_only_a_signature_is_made_and_else_the_old_plan_is_kept(workspace, capsys):
    text = "# ours\n" + workspace.plan_path.read_text().replace("min_sites = 2", "min_sites = 2  # enough")
    workspace.plan_path.write_text(text)
    assert main(["keys", "sign", "-C", str(workspace.root)]) == 0
    assert workspace.plan_path.read_text() == text
    assert "comments" not in capsys.readouterr().err
    stranger = ["keys", "trust", "B", factories.SIGNERS["stranger"].public, "--replace", "-C", str(workspace.root)]
    assert main(stranger) == 0
    assert "# ours" not in workspace.plan_path.read_text()
    (kept,) = (workspace.private / "replaced").iterdir()
    assert kept.read_text() == text
    assert f"without its comments; the previous file is kept in {workspace.relative(kept)}" in capsys.readouterr().err
    assert main([*stranger[:3], factories.SIGNERS["B"].public, *stranger[4:]]) == 0
    assert "comments" not in capsys.readouterr().err


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_after_an_interruption_the_hint_leads_back(done, workspace, monkeypatch, capsys):
    """Of the plan, its signature and the pins that are remembered, the first ones are written, and not the others."""
    workspace.read_plan()  # which remembers the keys
    real, calls = durable.write_file, itertools.count()

    def write_file(*arguments):
        if next(calls) >= done:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("fedmed_cli.trust.keys.write_file", write_file)
        patched.setattr("fedmed_cli.workspace.write_file", write_file)
        trust = ["keys", "trust", "B", factories.SIGNERS["stranger"].public, "--replace", "-C", str(workspace.root)]
        assert (main(trust) == 0) == (done == 3)
    capsys.readouterr()
    assert main(["status", "-q", "-C", str(workspace.root)]) == (7 if done in (1, 2) else 0)
    shown = " ".join(capsys.readouterr().err.split())
    if done == 1:
        assert "'fedmed keys sign', also where 'fedmed keys' was interrupted" in shown
        assert main(["keys", "sign", "-q", "-C", str(workspace.root)]) == 0
    if done == 2:
        assert "'fedmed keys accept' takes its keys" in shown
        assert main(["keys", "accept", "-q", "-C", str(workspace.root)]) == 0
    assert main(trust) == 0
    assert workspace.read_plan().sites.keys["B"] == factories.SIGNERS["stranger"].public


def test_only_the_coordinators_key_signs(workspace, tmp_path, fails):
    before = {path: path.read_bytes() for path in (workspace.plan_path, signature(workspace))}
    other = ["--key", tmp_path / "config/stranger", "-C", workspace.root]
    assert "for the coordinator, found" in fails(7, "keys", "sign", *other)
    stranger = factories.SIGNERS["stranger"].public
    assert "for the coordinator, found" in fails(7, "keys", "trust", "B", stranger, "--replace", *other)
    (tmp_path / "config/id_ed25519").unlink()
    assert "there is no key" in fails(3, "keys", "sign", "-C", workspace.root)
    assert "there is no key here" in fails(7, "keys", "trust", "B", stranger, "--replace", "-C", workspace.root)
    assert before == {path: path.read_bytes() for path in before}


def test_a_hospital_pins_the_key_that_the_plan_pins_without_signing(workspace, tmp_path):
    (tmp_path / "config/id_ed25519").unlink()
    public = factories.SIGNERS["coordinator"].public
    assert main(["keys", "trust", "coordinator", public, "-q", "-C", str(workspace.root)]) == 0
    assert workspace.known_pins()["coordinator"] == public


def test_another_coordinators_plan_needs_accepting(workspace, fails):
    workspace.read_plan()
    keys = factories.make_plan().sites.keys | {"coordinator": factories.SIGNERS["stranger"].public}
    factories.write_plan(workspace, factories.with_keys(factories.make_plan(), keys))
    assert "the keys of coordinator are not those" in fails(7, "verify", "-C", workspace.root)
    assert main(["keys", "accept", "-q", "-C", str(workspace.root)]) == 0
    assert workspace.read_plan().sites.keys == keys
