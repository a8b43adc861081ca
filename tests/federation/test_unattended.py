"""Rounds without a person at each step, over a shared folder that copies slowly, late, or from somebody hostile."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers.crashing import crash
from helpers.factories import SIGNERS, contribution, make_plan, make_workspace, without_keys
from helpers.processes import run

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.adapters.gate import read_from_anyone
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.errors import ConflictError, InputError, TrustError, UsageError
from fedmed_cli.federation import coordinator, mailbox, steps
from fedmed_cli.federation.mailbox import Mail, bundle_name
from fedmed_cli.federation.unattended import Coordinator, Hospital, check_mailbox
from fedmed_cli.records.plan import PrivacyRules
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.trust.chain import Chain
from fedmed_cli.workspace.durable import write_folder

SETTINGS = AggregationSettings(weights="tokens", server_lr=1.0)
PLAN = make_plan()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "shared").mkdir()
    return make_workspace(tmp_path / "work", PLAN, mailbox=False)


@pytest.fixture
def box(tmp_path, place):
    return tmp_path / "shared"


def make_coordinator(place, box, **options):
    """A coordinator, and what it says."""
    said = []
    combine = partial(
        steps.aggregate,
        place,
        settings=SETTINGS,
        signer=SIGNERS["coordinator"] if place.read_plan().sites.keys else None,
    )
    options = {"until": place.newest_round() + 1, "min_sites": 2, "deadline": None} | options
    return Coordinator(place, box, aggregate=combine, say=said.append, **options), said


def bundle(place, site, number=1, **options):
    start = archive.starting_adapter(place, place.read_plan(), number)
    return pack(contribution(PLAN, site, start, number, **{"signer": SIGNERS[site]} | options))


def drop(box, place, site, number=1, **options):
    (box / bundle_name(number, site)).write_bytes(bundle(place, site, number, **options))


def events(place):
    return [(one.event, one.round, one.party) for one in AuditLog(place).read()]


def reference(tmp_path, sites, number=1):
    """What `aggregate` makes of the same contributions, undisturbed."""
    other = make_workspace(tmp_path / f"reference {sites}", PLAN, num_rounds=number - 1, mailbox=False)
    start = archive.starting_adapter(other, PLAN, number)
    for site in sites:
        target = other.root / "sent" / site
        write_folder(target, dict(contribution(PLAN, site, start, number, signer=SIGNERS[site])))
    coordinator.aggregate(
        other, [other.root / "sent" / site for site in sites], SETTINGS, signer=SIGNERS["coordinator"]
    )
    return weights(other, number)


def weights(place, number=1):
    return (place.global_adapter(number) / "adapter_model.safetensors").read_bytes()


def test_the_round_is_made_when_all_are_there_and_sent(place, box, tmp_path):
    party, _ = make_coordinator(place, box)
    for site in "CAB":
        assert not party.look()
        drop(box, place, site)
    assert party.look()
    assert weights(place) == reference(tmp_path, "ABC")
    assert sorted(path.name for path in box.iterdir()) == [
        f"round-001-{name}.fedmed.tar" for name in ("A", "B", "C", "global")
    ]
    assert events(place) == [
        ("opened", 1, "coordinator"),
        ("taken", 1, "C"),
        ("taken", 1, "A"),
        ("taken", 1, "B"),
        ("sent", 1, "coordinator"),
    ]
    sent = AuditLog(place).read()[-1]
    assert sent.key == SIGNERS["coordinator"].fingerprint
    assert main(["verify", "-q", "--recompute", "-C", str(place.root)]) == 0


@pytest.mark.parametrize("how", ["grows", "reserved", "folder"])
def test_what_is_still_being_copied_is_not_taken(how, place, box):
    """A copy grows, or has its size at once and its bytes later, or is a folder that fills file by file."""
    for site in "AC":
        drop(box, place, site)
    party, said = make_coordinator(place, box)
    start = archive.starting_adapter(place, PLAN, 1)
    data, files = bundle(place, "B"), contribution(PLAN, "B", start, signer=SIGNERS["B"])
    target = box / ("B" if how == "folder" else bundle_name(1, "B"))
    if how == "folder":
        target.mkdir()
    for tenth in range(1, 10):
        cut = len(data.rstrip(b"\0")) * tenth // 10  # a bundle ends with zeros
        if how == "folder":
            for name in sorted(files)[: len(files) * tenth // 10]:
                (target / name).write_bytes(files[name])
        else:
            target.write_bytes(data[:cut] + bytes(len(data) - cut) * (how == "reserved"))
        assert not party.look()
    assert ("taken", 1, "B") not in events(place)
    for name in files if how == "folder" else ():
        (target / name).write_bytes(files[name])
    if how != "folder":
        target.write_bytes(data)
    assert party.look()
    assert ("taken", 1, "B") in events(place)
    assert not any("refused" in line for line in said)


def test_after_the_deadline_enough_are_enough_and_what_comes_later_is_late(place, box, tmp_path):
    for site in "AB":
        drop(box, place, site)
    party, said = make_coordinator(place, box, deadline=0.0, until=2)
    late = bundle(place, "C")
    assert not party.look()  # which looks at all once more before it goes on without C
    assert not party.look()
    assert place.newest_round() == 1
    assert weights(place) == reference(tmp_path, "AB")
    (box / bundle_name(1, "C")).write_bytes(late)
    for site in "AB":
        drop(box, place, site, 2)
    party.look()
    assert party.look()
    assert place.newest_round() == 2
    assert ("late", 1, "C") in events(place)
    assert any("is late: round 1 was made without it; kept in late/001/C" in line for line in said)
    assert pack({path.name: path.read_bytes() for path in (place.late / "001/C").iterdir()}) == late
    assert "C" not in archive.archived_global(place, PLAN, 2).record.sites
    assert not any("round-001-A" in line for line in said)  # what the round was made of is not late


def test_of_two_late_contributions_of_a_site_the_first_is_kept(place, box):
    for site in "AB":
        drop(box, place, site)
    party, said = make_coordinator(place, box, deadline=0.0, until=2)
    first, second = bundle(place, "C"), bundle(place, "C", seed=99)
    while not place.newest_round():
        party.look()
    (box / bundle_name(1, "C")).write_bytes(first)
    party.look()
    (box / "C.fedmed.tar").write_bytes(second)
    party.look()
    line = f"{box / 'C.fedmed.tar'}: is late and not kept: late/001/C has another contribution of site C to round 1"
    assert said.count(line) == 1
    assert events(place).count(("late", 1, "C")) == 2
    assert pack({path.name: path.read_bytes() for path in (place.late / "001/C").iterdir()}) == first


def test_too_few_at_the_deadline_are_waited_for_and_named(place, box):
    drop(box, place, "A")
    party, said = make_coordinator(place, box, deadline=0.0)
    for _ in range(4):
        assert not party.look()
    lines = [line for line in said if "deadline has passed" in line]
    assert lines == [
        "round 1: its deadline has passed with 1 of the 2 contributions that it needs; still waiting for B, C"
    ]
    drop(box, place, "C")
    assert party.look()


def test_the_deadline_counts_from_the_first_look_of_all_processes(place, box, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fedmed_cli.trust.audit_log.utc_now", lambda: "2000-01-01T00:00:00Z")
        make_coordinator(place, box)[0].look()
    opened = AuditLog(place).read()[0].created
    for site in "AB":
        drop(box, place, site)
    party, _ = make_coordinator(place, box, deadline=3600.0)
    assert not party.look()  # which looks at all once more before it goes on without C
    assert party.look()
    assert [one.created for one in AuditLog(place).read() if one.event == "opened"] == [opened]


@pytest.mark.parametrize("what", ["flipped", "stranger", "unsigned", "of another site", "link", "empty"])
def test_one_refusal_does_not_end_the_others_round(what, place, box, tmp_path):
    data = {
        "flipped": bundle(place, "C").replace(b'"num_tokens": 5000', b'"num_tokens": 5001'),
        "stranger": bundle(place, "C", signer=SIGNERS["stranger"]),
        "unsigned": bundle(place, "C", signer=None),
        "of another site": bundle(place, "A", seed=5),
        "empty": b"",
    }
    if what == "link":
        (box / "C").symlink_to(place.root)
    else:
        (box / bundle_name(1, "C")).write_bytes(data[what])
    for site in "AB":
        drop(box, place, site)
    party, said = make_coordinator(place, box, deadline=0.0)
    while not party.look():
        pass
    assert weights(place) == reference(tmp_path, "AB")
    (refused,) = (one for one in AuditLog(place).read() if one.event == "refused")
    assert (refused.party, refused.round, refused.key) == ("C", 1, None)
    assert refused.exit_code in (3, 7)
    assert len([line for line in said if line.startswith("refused: ")]) == 1


def test_the_first_contribution_of_a_site_is_kept_and_the_second_named(place, box, tmp_path):
    drop(box, place, "A")
    party, said = make_coordinator(place, box)
    party.look()
    (box / "A.fedmed.tar").write_bytes(bundle(place, "A", seed=99))
    for site in "BC":
        party.look()
        drop(box, place, site)
    assert party.look()
    assert any("site A sent another contribution to round 1 before, which is kept" in line for line in said)
    assert weights(place) == reference(tmp_path, "ABC")


def test_a_contribution_that_changes_after_it_was_taken_is_read_again(place, tmp_path):
    """In adapters/ itself nothing is copied first: the round reads the folders through the gate once more."""
    start = archive.starting_adapter(place, PLAN, 1)
    for site in "ABC":
        write_folder(place.contribution(site), dict(contribution(PLAN, site, start, signer=SIGNERS[site])))
    party, _ = make_coordinator(place, None)
    whole = (place.contribution("B") / "README.md").read_bytes()
    real = party.aggregate

    def damaged(paths):
        (place.contribution("B") / "README.md").write_bytes(b"other")
        party.aggregate = real
        return real(paths)

    party.aggregate = damaged
    assert not party.look()
    assert not party.look()
    assert place.newest_round() == 0
    (place.contribution("B") / "README.md").write_bytes(whole)
    assert party.look()
    assert weights(place) == reference(tmp_path, "ABC")


def test_a_share_that_is_gone_for_a_while_ends_nothing(place, box):
    for site in "ABC":
        drop(box, place, site)
    party, said = make_coordinator(place, box)
    away = box.rename(box.with_name("away"))
    assert not party.look()
    assert any("cannot be read (No such file or directory); waiting for it" in line for line in said)
    away.rename(box)
    assert party.look()


def test_another_fedmed_in_the_workspace_is_waited_for(place, box):
    for site in "ABC":
        drop(box, place, site)
    party, said = make_coordinator(place, box)
    with place.lock():
        assert not party.look()
    assert any("another fedmed" in line for line in said)
    assert party.look()


def make_hospital(tmp_path, box, train=lambda: None, site="A", plan=PLAN, signer=SIGNERS["A"], **options):
    place = make_workspace(tmp_path / f"hospital-{site}", plan, mailbox=False)
    said = []

    def training():
        number = place.newest_round() + 1
        start = archive.starting_adapter(place, plan, number)
        place.replace_folder(place.contribution(site), dict(contribution(plan, site, start, number, signer=signer)))
        train()

    return place, Hospital(place, box, site, train=training, say=said.append, **{"until": 2} | options), said


def test_a_hospital_takes_the_global_adapter_trains_and_sends_until_the_round_is_there(place, box, tmp_path):
    trained = []
    home, party, said = make_hospital(tmp_path, box, lambda: trained.append(1))
    assert not party.look()
    assert (box / bundle_name(1, "A")).read_bytes() == bundle(place, "A")
    for number in (1, 2):
        for site in "BC":
            drop(box, place, site, number)
        assert make_coordinator(place, box)[0].look()
        assert party.look() == (number == 2)
    assert len(trained) == 2
    assert home.newest_round() == 2
    assert weights(home, 2) == weights(place, 2)
    assert events(home) == [
        ("sent", 1, "A"),
        ("taken", 1, "coordinator"),
        ("sent", 2, "A"),
        ("taken", 2, "coordinator"),
    ]
    assert main(["verify", "-q", "--require-signatures", "-C", str(home.root)]) == 0
    assert not any("without a contribution" in line for line in said)


def test_a_hospital_that_was_away_goes_on_with_the_newest_round(place, box, tmp_path):
    for number in (1, 2):
        for site in "BC":
            drop(box, place, site, number)
        party, _ = make_coordinator(place, box, deadline=0.0)
        while not party.look():
            pass
    home, party, said = make_hospital(tmp_path, box, until=3)
    assert not party.look()
    assert home.newest_round() == 2
    assert (box / bundle_name(3, "A")).exists()
    assert "round 2 was made without a contribution of this site" in said


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
def test_without_pinned_keys_a_hospital_that_was_away_files_every_round(order, box, tmp_path):
    """In whatever order they come: a round that was refused is taken once the one before it is filed."""
    plan = without_keys(PLAN)
    there = make_workspace(tmp_path / "there", plan, num_rounds=3, mailbox=False)
    home = make_workspace(tmp_path / "home", plan, mailbox=False)
    party = Hospital(home, box, "A", 5, train=lambda: None)
    for number in order:
        (box / bundle_name(number, "global")).write_bytes(pack(archive.archived_global(there, plan, number).files))
        with home.lock():
            for _ in range(2):  # what stays as it is and does not pass is refused
                party._read_mail()
    assert home.newest_round() == 3


@pytest.mark.parametrize("what", ["half", "stranger", "flipped"])
def test_a_hospital_takes_only_the_coordinators_whole_adapter(what, place, box, tmp_path):
    for site in "BC":
        drop(box, place, site)
    party, _ = make_coordinator(place, box, deadline=0.0)
    while not party.look():
        pass
    target = box / bundle_name(1, "global")
    data = target.read_bytes()
    if what == "stranger":
        files = {path.name: path.read_bytes() for path in place.global_adapter(1).iterdir()}
        from fedmed_cli.records.signatures import sign

        bad = pack(files | {"aggregate.json.sig": sign(SIGNERS["stranger"], files["aggregate.json"])})
    else:
        bad = data[: len(data) // 2] if what == "half" else data.replace(b'"round": 1', b'"round": 3')
    target.write_bytes(bad)
    home, party, said = make_hospital(tmp_path, box)
    for _ in range(3):
        assert not party.look()
    assert home.newest_round() == 0
    assert ("refused", 1, "coordinator") in events(home)
    target.write_bytes(data)
    party.look()
    assert home.newest_round() == 1
    assert any(line.startswith("refused: ") for line in said)


def test_a_bundle_that_was_cut_is_sent_again_and_one_that_was_fetched_is_not(place, box, tmp_path):
    home, party, _ = make_hospital(tmp_path, box)
    party.look()
    target = box / bundle_name(1, "A")
    whole = target.read_bytes()
    target.write_bytes(whole[:1000])
    said = []
    make = partial(Hospital, home, box, "A", 2, lambda: pytest.fail("it was trained already"), say=said.append)
    make().look()
    assert target.read_bytes() == whole
    target.unlink()
    make().look()
    assert not target.exists()
    assert "was sent and is gone" in said[-1]


@pytest.mark.parametrize(
    ("plan", "signer", "message"),
    [
        (PLAN, None, "the plan pins a key for site A"),
        (
            replace(PLAN, privacy=PrivacyRules(max_audit_auc=0.6)),
            SIGNERS["A"],
            "asks for an audit of each contribution",
        ),
    ],
)
def test_what_may_not_leave_the_hospital_is_not_sent(plan, signer, message, box, tmp_path):
    home, party, _ = make_hospital(tmp_path, box, plan=plan, signer=signer)
    for act in (party.look, party.look, partial(party.contribute, 1)):
        with pytest.raises(TrustError, match=message):
            act()
    assert home.contribution("A").is_dir()
    assert list(box.iterdir()) == []
    assert events(home) == []


def test_a_share_that_cannot_be_written_is_tried_again(box, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    home, party, said = make_hospital(tmp_path, box)
    with monkeypatch.context() as patch:
        patch.setattr(mailbox, "write_in_place", full)
        assert not party.look()
    assert said[-1] == f"{box / bundle_name(1, 'A')}: cannot be written (No space left on device); trying again"
    assert events(home) == []
    assert not party.look()
    assert (box / bundle_name(1, "A")).read_bytes() == bundle(home, "A")
    assert events(home) == [("sent", 1, "A")]


def test_a_contribution_that_another_command_replaces_again_and_again_is_a_conflict(box, tmp_path):
    """Whatever is trained, that of another round lies there when it is looked for."""
    other = make_workspace(tmp_path / "other", PLAN, num_rounds=1)
    trained = []

    def replaced():
        trained.append(1)
        home.replace_folder(home.contribution("A"), dict(read_from_anyone(other.contribution("A")).files))

    home, party, _ = make_hospital(tmp_path, box, replaced)
    with pytest.raises(ConflictError, match="site A: another command replaced its contribution to round 1"):
        party.contribute(1)
    assert len(trained) == 2
    assert events(home) == []


def test_a_link_in_the_shared_folder_is_replaced_and_not_followed(place, box, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (box / bundle_name(1, "A")).symlink_to(tmp_path / "mine")
    _, party, _ = make_hospital(tmp_path, box)
    party.look()
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (box / bundle_name(1, "A")).read_bytes() == bundle(place, "A")


def test_nothing_else_is_read_from_the_shared_folder_and_it_is_named(place, box):
    (box / "notes.txt").write_text("hello")
    (box / ".stfolder").mkdir()
    party, said = make_coordinator(place, box)
    party.look()
    party.look()
    assert [line for line in said if "skipped" in line] == [
        f"{box / 'notes.txt'}: skipped, its name is neither a site's nor a round's"
    ]


def test_of_many_other_names_the_first_are_named_and_the_rest_is_counted(place, box):
    for number in range(30):
        (box / f"notes-{number:02d}.txt").touch()
    party, said = make_coordinator(place, box)
    party.look()
    party.look()
    skipped = [line for line in said if "notes-" in line]
    assert [line.partition(":")[0] for line in skipped] == [str(box / f"notes-{n:02d}.txt") for n in range(10)]
    assert f"and 20 more such names in {box}" in said


@pytest.mark.parametrize("whose", ["A", "global"])
def test_of_many_refused_files_the_first_are_written_down_and_the_rest_is_counted(whose, place, box, tmp_path):
    for number in range(1, 31):
        (box / bundle_name(number, whose)).write_bytes(b"%d" % number)
    home, (party, said) = place, make_coordinator(place, box)
    if whose == "global":
        home, party, said = make_hospital(tmp_path, box)
    for _ in range(3):
        assert not party.look()
    who = "the coordinator" if whose == "global" else "site A"
    assert len([line for line in said if line.startswith("refused: ")]) == 10
    assert len([one for one in AuditLog(home).read() if one.event == "refused"]) == 10
    rest = f"round 1: and 20 more files under the name of {who} were refused, which the audit log does not name"
    assert said.count(rest) == 1


def test_the_audit_log_is_not_read_again_for_each_event(place, box, monkeypatch):
    for site in "ABC":
        for number in range(1, 11):
            (box / bundle_name(number, site)).write_bytes(b"%d" % number)
    read, reads = Chain.read, []
    monkeypatch.setattr(Chain, "read", lambda chain: reads.append(1) or read(chain))
    party, _ = make_coordinator(place, box)
    party.look()
    party.look()
    assert len([event for event, _, _ in events(place) if event == "refused"]) == 30
    assert len(reads) <= 4


def test_an_audit_log_that_another_process_wrote_meanwhile_is_read_again(place):
    place.make_private()
    one, other = AuditLog(place), AuditLog(place)
    for log, number in ((one, 1), (other, 2), (one, 2), (other, 1), (one, 3)):
        log.note("opened", PLAN.digest, number, "coordinator")
    assert events(place) == [("opened", number, "coordinator") for number in (1, 2, 3)]


def test_refusals_without_a_digest_are_each_written_down(place):
    place.make_private()
    log = AuditLog(place)
    for code in (3, 4, 4):
        log.note("refused", PLAN.digest, 1, "A", None, None, code)
    assert [one.exit_code for one in AuditLog(place).read()] == [3, 4, 4]


def test_a_file_that_is_too_large_is_refused_unread(place, box):
    with (box / bundle_name(1, "A")).open("wb") as file:
        file.truncate(100_000_000)
    (box / bundle_name(1, "B")).write_bytes(b"x")
    party, _ = make_coordinator(place, box)
    party.look()
    party.look()
    refused = {one.party: one.digest for one in AuditLog(place).read() if one.event == "refused"}
    assert refused == {"A": None, "B": hashlib.sha256(b"x").hexdigest()}


def test_of_a_folder_with_many_files_no_more_are_looked_at_than_the_gate_does(box):
    (box / "A").mkdir()
    for number in range(200):
        (box / "A" / f"{number:03d}").touch()
    (entry,) = Mail(box, ["A"], ["A"], print).unread()
    assert len(entry.stamp) < 50


def test_a_seal_with_an_infinite_number_is_damaged(place, fails):
    place.make_private()
    AuditLog(place).note("opened", PLAN.digest, 1, "coordinator")
    (place.private / "audit-seal.json").write_text('{"entries": 1e400, "last": "x"}')
    assert "audit-seal.json: is damaged" in fails(3, "verify", "-C", place.root)


def test_where_no_key_is_pinned_it_is_said_and_signatures_can_be_required(tmp_path, box):
    plan = without_keys(PLAN)
    place = make_workspace(tmp_path / "unsigned", plan, mailbox=False)
    start = archive.starting_adapter(place, plan, 1)
    for site in "ABC":
        (box / bundle_name(1, site)).write_bytes(pack(contribution(plan, site, start)))
    party, said = make_coordinator(place, box, require_signatures=True, deadline=0.0)
    for _ in range(4):
        assert not party.look()
    assert sum("--require-signatures" in line for line in said) == 3
    party, said = make_coordinator(place, box)
    assert party.look()
    assert any("nothing proves that it comes from site A" in line for line in said)


@pytest.mark.parametrize("damage", ["changed", "taken out", "the last one", "torn"])
def test_verify_checks_the_audit_log(damage, place, box, fails):
    for site in "ABC":
        drop(box, place, site)
    assert make_coordinator(place, box)[0].look()
    path = place.private / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "torn":
        path.write_bytes(b"".join(lines) + lines[0][:50])
        assert main(["verify", "-q", "-C", str(place.root)]) == 0
        return
    path.write_bytes(
        b"".join(
            {
                "changed": [lines[0], lines[1].replace(b'"party": "A"', b'"party": "B"'), *lines[2:]],
                "taken out": [lines[0], *lines[2:]],
                "the last one": lines[:-1],
            }[damage]
        )
    )
    fails(7, "verify", "-C", place.root)
    with pytest.raises(TrustError):
        make_coordinator(place, box, until=2)[0].look()


def test_the_audit_log_holds_numbers_and_digests_only(place, box):
    for site in "ABC":
        drop(box, place, site)
    (box / "B").mkdir()
    (box / "B" / "secret text").write_text("secret text")
    party, _ = make_coordinator(place, box, until=2)
    party.look()
    party.look()
    text = (place.private / "audit.jsonl").read_text()
    assert "refused" in text
    assert "secret" not in text
    assert str(box) not in text
    for line in text.splitlines():
        assert set(json.loads(line)) == {
            *("format", "version", "fedmed_version", "event", "round", "plan", "party", "digest", "key"),
            *("exit_code", "created", "previous"),
        }
    assert (place.private / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_a_mailbox_is_a_folder_outside_the_workspace(place, tmp_path):
    with pytest.raises(InputError):
        check_mailbox(place, tmp_path / "nowhere")
    with pytest.raises(UsageError):
        check_mailbox(place, place.root)
    with pytest.raises(UsageError, match="the workspace is inside"):
        check_mailbox(place, tmp_path)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["aggregate", "--deadline", "48h"], "--deadline goes with --wait"),
        (["aggregate", "--mailbox", "."], "--mailbox goes with --wait"),
        (["aggregate", "--wait", "--min-sites", "2"], "--min-sites goes with --deadline"),
        (["aggregate", "--wait", "--deadline", "2 days"], "--deadline: expected a whole number and d, h, m or s"),
        (["aggregate", "--wait", "--deadline", "1h", "--min-sites", "1"], "--min-sites: expected 2 to 3"),
        (["aggregate", "--wait", "--dry-run"], "--wait takes what comes"),
        (["train-local", "--site", "A", "--wait"], "--wait goes with --mailbox"),
        (["train-local", "--site", "A", "--rounds", "2"], "--rounds goes with --wait"),
    ],
)
def test_options_that_do_not_go_together(argv, said, tmp_path, fails):
    place = make_workspace(tmp_path / "work", without_keys(PLAN), mailbox=False)
    assert said in fails(2, *argv, "-C", place.root)


@pytest.mark.slow
def test_both_commands_wait_without_torch_and_answer_in_json(place, box, tmp_path):
    """A hospital whose contribution is there needs no model to send it, nor to file the global adapter."""
    place = make_workspace(tmp_path / "unsigned", without_keys(PLAN))
    wait = ["--wait", "--json", "--poll", "0.01", "--rounds", "1", "--mailbox", box, "-C"]
    code, out, loaded = run(tmp_path, "aggregate", "--weights", "tokens", *wait, place.root)
    assert (code, loaded) == (0, [])
    (record,) = json.loads(out)["rounds"]
    assert set(record["sites"]) == {"A", "B", "C"}
    home = make_workspace(tmp_path / "home", without_keys(PLAN))
    code, out, loaded = run(tmp_path, "train-local", "--site", "B", *wait, home.root)
    assert (code, loaded) == (0, [])
    assert json.loads(out) == {"contributions": []}
    assert weights(home) == weights(place)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="these processes are forked")
def test_a_coordinator_killed_at_every_write_or_out_of_disk_at_some(trained_once, tmp_path):
    box = tmp_path / "shared"
    box.mkdir()
    argv = [
        "aggregate",
        "-q",
        "--weights",
        "tokens",
        "--wait",
        "--rounds",
        "1",
        "--poll",
        "0.01",
        "--mailbox",
        str(box),
    ]
    result = crash(tmp_path, trained_once, argv, ["rounds/"], ["every_write", "kill"], ["every_write", "full", 5])
    assert result["every_write kill"]["points"] > 60
    assert [path.name for path in box.iterdir()] == ["round-001-global.fedmed.tar"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="these processes are forked")
def test_processes_over_one_folder_killed_at_random_moments(tiny_base, tmp_path):
    """Three sites and a coordinator, each killed again and again; D is late, E hostile, B copied slowly."""
    program = Path(__file__).parents[1] / "helpers/unattended.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path / "scene", tiny_base, "8", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert min(result["kills"].values()) >= 4, result
    assert result["rounds"] == 2
