"""Signatures and keys, checked by the real ssh-keygen, and what the plan's keys do to unsigned folders."""

import json
import os
import shutil
import stat
import subprocess

import pytest
from helpers import bad_files, factories
from helpers.crashing import snapshot

from fedmed_cli.cli.app import main
from fedmed_cli.errors import InputError
from fedmed_cli.records import signatures
from fedmed_cli.records.plan import Plan

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen here")


@pytest.fixture(autouse=True)
def config(coordinators_key):
    return coordinators_key


@pytest.fixture
def place(tmp_path):
    plan = factories.make_plan()
    return bad_files.Place(factories.make_workspace(tmp_path / "work", plan), plan)


def ssh_verify(folder, name, record="contribution.json", signer="B"):
    """What `ssh-keygen -Y verify` says of a record and its signature, with fedmed out of the way."""
    allowed = folder.parent.parent / "allowed"
    allowed.write_text(f"{name} {factories.SIGNERS[signer].public}\n")
    return subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", name, "-n", "fedmed", "-s", folder / f"{record}.sig"],
        input=(folder / record).read_bytes(),
        capture_output=True,
    )


def checked_without_fedmed(folder, name="B"):
    """A contribution checked with ssh-keygen and sha256 alone, as docs/threat-model.md says."""
    if not (folder / bad_files.SIGNATURE).exists() or ssh_verify(folder, name).returncode != 0:
        return False
    import hashlib

    files = json.loads((folder / bad_files.RECORD).read_bytes())["files"]
    beside = {path.name for path in folder.iterdir()} - {bad_files.RECORD, bad_files.SIGNATURE}
    return beside == set(files) and all(
        hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest for file, digest in files.items()
    )


@needs_ssh_keygen
def test_ssh_keygen_accepts_a_contribution_and_refuses_each_tampered_one(place):
    done = ssh_verify(place.folder, "B")
    assert done.returncode == 0, done.stderr
    assert b'Good "fedmed" signature for B' in done.stdout
    assert checked_without_fedmed(place.folder)
    whole = snapshot(place.folder)
    spoil = [case for case in bad_files.CASES if case.argv is bad_files._aggregate and case.code == 7]
    assert len(spoil) >= 10
    signed_anew = {"another starting point", "a later round"}  # by the site itself: what it says is false, not forged
    for case in spoil:
        for path in place.folder.iterdir():
            path.unlink()
        for name, data in whole.items():
            place.write(name, data)
        case.change(place)
        assert checked_without_fedmed(place.folder) == (case.name in signed_anew), case.name


@needs_ssh_keygen
def test_keys_and_signatures_of_ssh_keygen_are_taken(tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hospital b", "-f", key], check=True)
    (tmp_path / "m").write_bytes(b"message")
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", "fedmed", tmp_path / "m"], check=True)
    signer = signatures.load(key, None)
    assert signatures.verify(b"message", (tmp_path / "m.sig").read_bytes(), "m.sig") == signer.public
    assert signatures.sign(signer, b"message") == (tmp_path / "m.sig").read_bytes()  # Ed25519 leaves no choice
    assert signatures.parse_public((tmp_path / "key.pub").read_text(), "key.pub") == signer.public


@needs_ssh_keygen
@pytest.mark.slow
def test_a_key_with_a_passphrase_is_one_that_ssh_keygen_opens(tmp_path, monkeypatch, capsys, fails):
    key = tmp_path / "secret"
    monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", "correct horse")
    assert main(["keys", "new", "--passphrase", "--name", "B", "--key", str(key), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert signatures.is_encrypted(key.read_bytes())
    for phrase, code in (("correct horse", 0), ("wrong", 255)):
        done = subprocess.run(["ssh-keygen", "-y", "-P", phrase, "-f", key], capture_output=True, text=True)
        assert done.returncode == code
    done = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "secret.pub"], capture_output=True, text=True)
    assert value["fingerprint"] == done.stdout.split()[1]
    assert signatures.load(key, "correct horse").public == value["public"]
    with pytest.raises(InputError, match="passphrase is wrong"):
        signatures.load(key, "wrong")
    monkeypatch.delenv("FEDMED_KEY_PASSPHRASE")
    root = factories.make_workspace(tmp_path / "work", factories.make_plan(signed=False)).root
    argv = ["aggregate", "--key", key, "-C", root]
    assert "there is no terminal to ask for it" in fails(3, *argv)


@pytest.mark.parametrize("argv", [["keys"], ["keys", "new"], ["keys", "show"], ["keys", "trust"]])
def test_the_keys_commands_have_help_with_an_example(argv, capsys):
    assert main([*argv, "--help"]) == 0
    assert "Example: fedmed keys" in capsys.readouterr().out


def test_a_linked_plan_or_key_is_one_s_own_business(place, config):
    (place.root / "federation.toml").rename(place.root.parent / "plan.toml")
    (place.root / "federation.toml").symlink_to(place.root.parent / "plan.toml")
    (config / "id_ed25519").rename(config / "elsewhere")
    (config / "id_ed25519").symlink_to(config / "elsewhere")
    assert main(["aggregate", "-q", "-C", str(place.root)]) == 0


def test_a_new_key_is_private_and_never_overwritten(tmp_path, fails):
    old = os.umask(0)
    try:
        assert main(["keys", "new", "--key", str(tmp_path / "x/id"), "-q"]) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x/id").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700
    before = snapshot(tmp_path / "x")
    assert "exists already" in fails(6, "keys", "new", "--key", tmp_path / "x/id")
    assert snapshot(tmp_path / "x") == before
    (tmp_path / "x/id").unlink()
    assert "id.pub exists already" in fails(6, "keys", "new", "--key", tmp_path / "x/id")
    assert not (tmp_path / "x/id").exists()  # no key that the .pub beside it does not belong to


def test_a_private_key_never_lies_in_a_workspace(place, fails):
    inside = place.root / "adapters" / "id"
    assert "a private key never does" in fails(2, "keys", "new", "--key", inside, "-C", place.root)
    assert "a private key never does" in fails(2, "keys", "new", "--key", inside)
    factories.write_key(inside, factories.SIGNERS["coordinator"])
    assert "a private key never does" in fails(2, "aggregate", "--key", inside, "-C", place.root)
    assert not [
        path for path in place.root.rglob("*") if path.is_file() and path != inside and b"PRIVATE" in path.read_bytes()
    ]  # and none that fedmed made is there


def test_fingerprints_can_be_read_aloud(config, capsys):
    assert main(["keys", "new", "--key", str(config / "new"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    groups = value["spoken"].split(" ")
    assert [len(group) for group in groups] == [5] * 8
    assert "".join(groups).isdigit()
    assert main(["keys", "show", str(config / "new.pub"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) | {"path": ""} == value | {"path": "", "pinned": {}}
    seen = {signatures.fingerprint_digits(factories.make_signer(number).public) for number in range(200)}
    assert len(seen) == 200


def test_pinning_keys_changes_the_sites_digest_and_not_the_plans(tmp_path, capsys):
    plan = factories.make_plan(signed=False)
    root = factories.make_workspace(tmp_path / "work", plan, mailbox=False).root
    for name in (*factories.SITES, "coordinator"):
        argv = ["keys", "trust", name, factories.SIGNERS[name].public + " a comment", "-C", str(root), "-q"]
        assert main(argv) == 0
    after = Plan.read(root / "federation.toml")
    assert after == factories.make_plan(signed=True)
    assert after.digest == plan.digest
    assert after.sites.digest != plan.sites.digest
    capsys.readouterr()
    assert main(["keys", "show", "--json", "-C", str(root)]) == 0
    shown = json.loads(capsys.readouterr().out)["pinned"]
    assert shown["B"]["fingerprint"] == factories.SIGNERS["B"].fingerprint


def test_a_new_key_of_a_site_needs_replace(place, fails):
    line = factories.SIGNERS["stranger"].public
    assert "the plan pins the key" in fails(6, "keys", "trust", "B", line, "-C", place.root)
    assert main(["keys", "trust", "B", line, "--replace", "-q", "-C", str(place.root)]) == 0
    assert "the plan expects site B's key" in fails(7, "aggregate", "-C", place.root)
    assert "the plan has no site 'Z'" in fails(3, "keys", "trust", "Z", line, "-C", place.root)


def test_a_plan_without_keys_says_what_is_not_signed_and_can_require_it(tmp_path, capsys, fails):
    workspace = factories.make_workspace(tmp_path / "work", factories.make_plan(signed=False))
    argv = ["aggregate", "-C", str(workspace.root)]
    assert "is not signed, and --require-signatures is given" in fails(7, *argv, "--require-signatures")
    assert not list(workspace.rounds.glob("*"))
    plain = factories.contribution(
        factories.make_plan(signed=False), "B", _start(workspace), signer=factories.SIGNERS["stranger"]
    )
    for name, data in plain.items():
        (workspace.contribution("B") / name).write_bytes(data)
    assert "pins no key for site B" in fails(7, *argv, "--require-signatures", "--exclude", "A")
    assert main(argv) == 0
    err = capsys.readouterr().err
    assert "adapters/A: is not signed: nothing proves that it comes from site A" in err
    assert "which the plan does not know: anyone could have made it" in err
    record = json.loads((workspace.global_adapter(1) / "aggregate.json").read_text())
    assert "signers" not in record
    assert (workspace.global_adapter(1) / "aggregate.json.sig").exists()  # the default key signs


def _start(workspace):
    from fedmed_cli.adapters import archive

    return archive.starting_adapter(workspace, workspace.read_plan(), 1)


@needs_ssh_keygen
def test_the_aggregate_is_signed_and_the_hospital_checks_it(place, tmp_path, fails):
    assert main(["aggregate", "-q", "-C", str(place.root)]) == 0
    sent = place.workspace.global_adapter(1)
    assert ssh_verify(sent, "coordinator", "aggregate.json", "coordinator").returncode == 0
    home = tmp_path / "hospital"
    home.mkdir()
    factories.send_plan(place.root, home)
    assert main(["verify", str(sent), "-q", "-C", str(home)]) == 0
    (sent / "aggregate.json.sig").unlink()
    assert "pins a key for the coordinator" in fails(7, "verify", sent, "-C", home)


def test_the_coordinator_without_its_key_is_told_before_any_work(place, config, fails):
    (config / "id_ed25519").unlink()
    message = fails(7, "aggregate", "-C", place.root)
    assert "for the coordinator, there is no key here" in message
    assert not place.workspace.rounds.exists()


@pytest.mark.slow
def test_train_local_signs_and_refuses_to_sign_with_another_key(split_workspace, tiny_base, config, fails, capsys):
    root = split_workspace.root
    for name in ("A", "coordinator"):
        assert main(["keys", "trust", name, factories.SIGNERS[name].public, "-q", "-C", str(root)]) == 0
    argv = ["train-local", "--site", "A", "-C", root, "--base", tiny_base, "--max-steps", "1"]
    assert "for site A, found" in fails(7, *argv)  # the default key is the coordinator's
    key = factories.write_key(config / "a", factories.SIGNERS["A"])
    assert main([str(part) for part in argv] + ["--key", str(key)]) == 0
    capsys.readouterr()
    for site in "BC":
        assert main(["train-local", "-q", "--site", site, "-C", str(root), "--base", str(tiny_base)]) == 0
    assert main(["aggregate", "--weights", "tokens", "--json", "-q", "-C", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["signers"] == {"A": factories.SIGNERS["A"].fingerprint}
    sent = split_workspace.global_adapter(1)
    home = root.parent / "home"
    (home / "data").mkdir(parents=True)
    factories.send_plan(root, home)
    shutil.copytree(root / "data/A", home / "data/A")
    argv = ["train-local", "--site", "A", "-C", home, "--base", tiny_base, "--max-steps", "1", "--key", key]
    kept = (sent / "aggregate.json.sig").read_bytes()
    (sent / "aggregate.json.sig").unlink()
    assert "aggregate.json.sig is missing" in fails(7, *argv, "--global", sent)
    (sent / "aggregate.json.sig").write_bytes(kept)
    assert main([str(part) for part in argv] + ["--global", str(sent), "-q"]) == 0
    assert main(["verify", "-q", "-C", str(home)]) == 0
