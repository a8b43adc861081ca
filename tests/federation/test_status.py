"""`fedmed status` in every state of a workspace: the table of docs/operating.md, each row of it made and shown."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import factories
from helpers.factories import SIGNERS, SITES, contribution, make_plan, make_workspace, send_plan, write_key, write_plan

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.federation import coordinator
from fedmed_cli.federation.status import Status, read_status
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_folder

PAGE = (Path(__file__).parents[2] / "docs/operating.md").read_text(encoding="utf-8")
SIGNED, UNSIGNED = make_plan(), make_plan(signed=False)


def send(place, plan, site, number=1, name=None, **options):
    """Put a contribution into the mailbox; an older one is removed."""
    target = place.adapters / (name or site)
    shutil.rmtree(target, ignore_errors=True)
    options = {"signer": SIGNERS[site] if plan.sites.keys else None} | options
    start = options.pop("start", None) or archive.starting_adapter(place, plan, min(number, place.newest_round() + 1))
    write_folder(target, dict(contribution(plan, site, start, number, **options)))
    return target


def combine(place, plan, *sites):
    signer = SIGNERS["coordinator"] if plan.sites.keys else None
    paths = [place.contribution(site) for site in sites]
    coordinator.aggregate(place, paths, AggregationSettings(), signer=signer)


def empty(root, plan=SIGNED):
    return make_workspace(root, plan, mailbox=False)


def after_round(root, plan=SIGNED):
    """One round of all sites is combined; what they sent for it is still in the mailbox."""
    place = empty(root, plan)
    for site in SITES:
        send(place, plan, site)
    combine(place, plan, *SITES)
    return place


def with_mail(*sites, plan=SIGNED):
    def make(root):
        place = empty(root, plan)
        for site in sites:
            send(place, plan, site)
        return place

    return make


def give_data(place, *sites):
    for site in sites:
        place.site_data(site).mkdir(parents=True)
        (place.site_data(site) / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n')


def change_record(place, change):
    """Change what the coordinator wrote about round 1, in a federation that pins no key."""
    path = place.global_adapter(1) / "aggregate.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


STATES = {}


def state(name):
    def add(make):
        STATES[name] = make
        return make

    return add


@state("no plan")
def _(root):
    root.mkdir()


@state("a damaged plan")
def _(root):
    empty(root).plan_path.write_text("plan =")


@state("a plan whose pinned keys changed")
def _(root):
    place = empty(root)
    place.read_plan()
    write_plan(place, UNSIGNED)


@state("a plan, and nothing else")
def _(root):
    empty(root)


@state("split done, nothing trained")
def _(root):
    give_data(empty(root, UNSIGNED), *SITES)


@state("a hospital with its own data and nobody else's")
def _(root):
    give_data(empty(root), "B")


@state("a training that was interrupted")
def _(root):
    place = empty(root)
    give_data(place, "B")
    (place.private / "checkpoints").mkdir(parents=True)
    (place.private / "checkpoints" / "B.npz").write_bytes(b"half")


@state("a hospital with its own contribution")
def _(root):
    place = with_mail("B")(root)
    give_data(place, "B")


STATES["some sites' contributions, too few"] = with_mail("A")
STATES["enough contributions, not all"] = with_mail("A", "B")
STATES["all contributions"] = with_mail(*SITES)


@state("a contribution as one file")
def _(root):
    place = with_mail("A", "C")(root)
    files = contribution(SIGNED, "B", archive.starting_adapter(place, SIGNED, 1), signer=SIGNERS["B"])
    (place.adapters / "B.fedmed.tar").write_bytes(pack(files))


STATES["contributions that nobody signed, and no key is pinned"] = with_mail(*SITES, plan=UNSIGNED)


@state("a contribution that an unknown key signed, and no key is pinned")
def _(root):
    send(empty(root, UNSIGNED), UNSIGNED, "A", signer=SIGNERS["A"])


STATES["round combined, `adapters/` as it was"] = after_round


@state("round combined, a new contribution beside old ones")
def _(root):
    send(after_round(root), SIGNED, "A", 2)


@state("enough new contributions, an old one still there")
def _(root):
    place = after_round(root)
    send(place, SIGNED, "A", 2)
    send(place, SIGNED, "B", 2)


@state("a contribution that came after its round")
def _(root):
    place = with_mail(*SITES)(root)
    combine(place, SIGNED, "A", "B")


@state("a contribution to a later round")
def _(root):
    send(empty(root), SIGNED, "B", 2)


@state("a contribution trained from another adapter")
def _(root):
    place = empty(root)
    elsewhere = factories.trained(SIGNED, archive.starting_adapter(place, SIGNED, 1), seed=1)
    send(place, SIGNED, "B", start=elsewhere)


@state("a contribution that was damaged on its way")
def _(root):
    path = with_mail(*SITES)(root).contribution("B") / "README.md"
    path.write_bytes(path.read_bytes() + b" ")


@state("a contribution without its signature, and its key is pinned")
def _(root):
    send(empty(root), SIGNED, "B", signer=None)


@state("a contribution signed with another key")
def _(root):
    send(empty(root), SIGNED, "B", signer=SIGNERS["stranger"])


@state("a refused contribution, and all sites' data")
def _(root):
    place = with_mail("A", "C")(root)
    give_data(place, *SITES)
    send(place, SIGNED, "B", signer=None)


@state("a contribution of another plan")
def _(root):
    place = empty(root)
    other = dataclasses.replace(SIGNED, training=dataclasses.replace(SIGNED.training, learning_rate=0.5))
    send(place, other, "B")


@state("a folder of no site")
def _(root):
    (with_mail(*SITES)(root).adapters / "zzz").mkdir()


@state("two folders of one site")
def _(root):
    send(with_mail(*SITES)(root), SIGNED, "B", name="X")


@state("a plain file in `adapters/`")
def _(root):
    (with_mail(*SITES)(root).adapters / "notes.txt").write_text("by hand")


@state("a contribution that the coordinator rejected")
def _(root):
    def change(record):
        for site, weight in (("A", 0.5), ("B", 0.5), ("C", 0.0)):
            record["sites"][site]["weight"] = weight
        record["sites"]["C"] |= {"verdict": "rejected", "reasons": ["it harms"]}

    change_record(after_round(root, UNSIGNED), change)


@state("a round measured on the coordinator's other examples")
def _(root):
    place = after_round(root)
    place.log("round", round=1, coordinator_before=2.5, coordinator_after=2.25, num_examples=50)


@state("a round measured only to decide")
def _(root):
    def change(record):
        loss = {"standard_error": 0.1, "num_examples": 50, "num_groups": 50, "num_tokens": 900}
        record["examination"] = {
            "examples_digest": "0" * 64,
            "num_examples": 50,
            "num_groups": 50,
            "parent": {"mean": 2.4, **loss},
            "result": {"mean": 2.3, **loss},
            "server_lr_losses": {},
        }

    change_record(after_round(root, UNSIGNED), change)


STATES["a round that nobody measured"] = after_round


@state("damaged metrics")
def _(root):
    (after_round(root).root / "metrics.jsonl").write_text("{\n")


@state("a global adapter that was damaged")
def _(root):
    path = after_round(root).global_adapter(1) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@state("a global adapter that is not signed, and the coordinator's key is pinned")
def _(root):
    (after_round(root).global_adapter(1) / "aggregate.json.sig").unlink()


@state("a plan that changed after a round")
def _(root):
    place = after_round(root)
    changed = dataclasses.replace(SIGNED, training=dataclasses.replace(SIGNED.training, learning_rate=0.5))
    write_plan(place, changed)


@state("a site that joined after a round")
def _(root):
    place = after_round(root)
    sites = dataclasses.replace(SIGNED.sites, names=(*SITES, "D"))
    write_plan(place, dataclasses.replace(SIGNED, sites=sites))
    shutil.rmtree(place.adapters)


@state("a round that was killed while it was written")
def _(root):
    place = with_mail(*SITES)(root)
    shutil.copytree(place.contribution("A"), place.rounds / ".001.abcd_123.tmp" / "A")


@state("a contribution whose writing was killed before its last move")
def _(root):
    place = with_mail(*SITES)(root)
    place.contribution("B").rename(place.adapters / ".B.123.new.tmp")


@state("a command that works here, or was killed")
def _(root):
    place = with_mail(*SITES)(root)
    place.make_private()
    (place.private / "lock.pid").write_text("123\n")


def table():
    """The rows of the page: state, and what status says."""
    lines = PAGE[PAGE.index("| state of the workspace |") :].split("\n\n")[0].splitlines()[2:]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def files(root):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def test_the_page_has_a_row_for_each_state_that_is_made_here():
    assert list(table()) == list(STATES)


@pytest.mark.parametrize("name", STATES)
def test_status_says_what_the_page_says_and_writes_nothing(name, tmp_path, capsys):
    root, row = tmp_path / "work", table()[name]
    STATES[name](root)
    before = files(root)
    code = main(["status", "--site", "B", "-C", str(root)])
    out, err = capsys.readouterr()
    expected = re.match(r"exit ([0-9])", row)
    assert code == (int(expected[1]) if expected else 0), err
    said = " ".join((err if code else out).split())
    phrases = re.findall(r"`([^`]+)`", row)
    assert phrases
    for phrase in phrases:
        assert phrase in said, (phrase, said)
    assert files(root) == before


def test_json_is_the_record_that_the_core_returns(tmp_path, capsys):
    place = after_round(tmp_path / "work")
    assert main(["status", "--json", "--site", "B", "-C", str(place.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert Status.from_bytes(out.encode(), "stdout") == read_status(place, "B")
    value = json.loads(out)
    assert value["round"] == 2
    assert value["sites"]["B"]["path"] == "adapters/B"
    assert [step["who"] for step in value["next"]] == ["site B", "coordinator"]


def test_the_coordinators_command_works_as_it_is_shown(tmp_path):
    place = with_mail("A", "B")(tmp_path / "work")
    key = write_key(tmp_path / "key", SIGNERS["coordinator"])
    argv = shlex.split(read_status(place).next[0].command)[1:]
    assert main([*argv, "--weights", "tokens", "-q", "--key", str(key)]) == 0
    assert place.newest_round() == 1
    send(place, SIGNED, "C", 2)
    send(place, SIGNED, "B", 2)
    argv = shlex.split(read_status(place).next[0].command)[1:]
    assert "--exclude" in argv
    assert argv[argv.index("--exclude") + 1] == "A"


def test_a_site_that_the_plan_does_not_have(tmp_path, fails):
    empty(tmp_path / "work")
    assert "no site 'Z'" in fails(3, "status", "--site", "Z", "-C", tmp_path / "work")


def test_a_hospital_that_only_has_the_global_adapter_is_not_late(tmp_path):
    """It does not know what the round before was made of where that round is not here."""
    whole, place = after_round(tmp_path / "whole"), Workspace(tmp_path / "work")
    for site in SITES:
        send(whole, SIGNED, site, 2)
    combine(whole, SIGNED, *SITES)
    place.root.mkdir()
    send_plan(whole.root, place.root)
    shutil.copytree(whole.global_adapter(2), place.global_adapter(2))
    shutil.copytree(whole.round(1) / "B", place.contribution("B"))
    found = read_status(place, "B")
    assert (found.round, found.sites["B"].state, found.sites["B"].round) == (3, "awaited", 1)
