"""Keys that were pinned once are remembered: a plan that drops or changes one is refused until a person accepts it."""

import dataclasses
import json

import pytest
from helpers import factories

from fedmed_cli.cli.app import main
from fedmed_cli.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path / "work")
    factories.write_plan(place, factories.make_plan())
    place.read_plan()
    return place


def with_keys(keys):
    return factories.with_keys(factories.make_plan(), keys)


KEYS = {name: factories.SIGNERS[name].public for name in ("A", "B", "C", "coordinator")}
CHANGES = {
    "stripped": ({}, "A, B, C, coordinator"),
    "one dropped": ({name: key for name, key in KEYS.items() if name != "B"}, "B"),
    "one changed": (KEYS | {"coordinator": factories.SIGNERS["stranger"].public}, "coordinator"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("command", [["verify"], ["aggregate"], ["report"], ["status"], ["keys", "show"]])
def test_every_command_refuses_such_a_plan(change, command, workspace, fails):
    keys, names = CHANGES[change]
    factories.write_plan(workspace, with_keys(keys))
    message = fails(7, *command, "-C", workspace.root)
    assert f"the keys of {names} are not those that were pinned here before" in message


def test_accepting_shows_what_changed_and_ends_it(workspace, capsys):
    factories.write_plan(workspace, with_keys(CHANGES["one changed"][0]))
    assert main(["keys", "accept", "-C", str(workspace.root)]) == 0
    out = capsys.readouterr().out
    for name in ("coordinator", "stranger"):
        assert factories.SIGNERS[name].fingerprint in out
    assert workspace.read_plan().sites.keys["coordinator"] == factories.SIGNERS["stranger"].public
    assert main(["keys", "accept", "--json", "-C", str(workspace.root)]) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": []}


def test_new_keys_are_remembered_and_replacing_one_by_command_is_saying_so(workspace, tmp_path):
    public = factories.SIGNERS["stranger"].public
    key = factories.write_key(tmp_path / "key", factories.SIGNERS["coordinator"])
    argv = ["keys", "trust", "B", public, "--replace", "-q", "--key", str(key), "-C", str(workspace.root)]
    assert main(argv) == 0
    assert workspace.read_plan().sites.keys["B"] == public
    assert workspace.known_pins() == KEYS | {"B": public}


def test_a_plan_without_keys_leaves_nothing_behind(tmp_path):
    place = Workspace(tmp_path / "work")
    factories.write_plan(place, factories.make_plan(signed=False))
    place.read_plan()
    assert not place.private.exists()
    factories.write_plan(place, factories.make_plan())
    place.read_plan()
    assert place.known_pins() == KEYS


def test_a_contribution_under_another_list_of_sites_is_said(trained_workspace, capsys):
    plan = trained_workspace.read_plan()
    factories.write_plan(
        trained_workspace, dataclasses.replace(plan, sites=dataclasses.replace(plan.sites, min_sites=1))
    )
    assert main(["aggregate", "-C", str(trained_workspace.root), "--weights", "tokens"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "site A trained under another list of sites or pinned keys" in said
