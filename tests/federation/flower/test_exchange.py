"""What the ServerApp makes of answers that are late, wrong, or none, with nodes that answer when a test says so."""

import contextlib

import pytest
from helpers.factories import SIGNERS, contribution, make_plan, make_workspace, write_key

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.errors import UsageError
from fedmed_cli.trust.audit_log import AuditLog

pytest.importorskip("flwr")

from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedmed_cli.federation.flower import client_app, server_app
from fedmed_cli.federation.flower.messages import RUN_SETTINGS, about, bundle_of, make_content, read_settings

pytestmark = pytest.mark.flower

PLAN = make_plan()
NODES = {1: "A", 2: "B", 3: "C"}


class Nodes(Grid):
    """A grid whose nodes answer what `answers` holds for them, once it does."""

    def __init__(self):
        self.here, self.asked, self.answers = set(NODES), {}, {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def send_and_receive(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return sorted(self.here)

    def push_messages(self, messages):
        names = []
        for message in messages:
            names.append(f"message-{len(self.asked)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self.asked[names[-1]] = message
        return names

    def pull_messages(self, message_ids):
        found = []
        for name in message_ids:
            message = self.asked[name]
            answer = self.answers.pop((message.metadata.dst_node_id, message.metadata.group_id), None)
            if isinstance(answer, Error) or answer is not None:
                found.append(Message(answer, reply_to=message))
        return found

    def count(self, node, number):
        asked = [(one.metadata.dst_node_id, one.metadata.group_id) for one in self.asked.values()]
        return asked.count((node, str(number)))


@pytest.fixture
def place(tmp_path):
    return make_workspace(tmp_path / "work", PLAN, mailbox=False)


@pytest.fixture
def start(place, monkeypatch, tmp_path):
    for number, name in enumerate(("_task_id", "_run_id", "_node_id"), 1):  # a run is what Flower starts
        monkeypatch.setattr(TaskIdentity, name, number)
    key = write_key(tmp_path / "key", SIGNERS["coordinator"])

    def make(**more):
        given = {"workspace": str(place.root), "key": str(key), "weights": "tokens", **more}
        party, inbox = server_app.make_party(read_settings(given, RUN_SETTINGS))
        grid = Nodes()
        return party, grid, server_app.Exchange(grid, place, inbox, "simulation.sites" in more)

    return make


def answer(place, site, number=1, **options):
    parent = archive.starting_adapter(place, PLAN, number)
    files = contribution(PLAN, site, parent, number, **{"signer": SIGNERS[site]} | options)
    return make_content(pack(files), site=site, round=number)


def look(party, exchange, times=1):
    done = False
    for _ in range(times):
        exchange.ask("train")
        exchange.collect()
        done = party.look()
    return done


def events(place):
    return [(one.event, one.round, one.party) for one in AuditLog(place).read()]


def test_each_node_is_asked_once_a_round_and_gets_the_global_adapter(place, start):
    party, grid, exchange = start(rounds=2)
    look(party, exchange, 3)
    assert [grid.count(node, 1) for node in NODES] == [1, 1, 1]
    assert bundle_of(next(iter(grid.asked.values())).content) is None
    for node, site in NODES.items():
        grid.answers[node, "1"] = answer(place, site)
    look(party, exchange, 2)
    assert place.newest_round() == 1
    (second,) = (one for one in grid.asked.values() if one.metadata.group_id == "2" and one.metadata.dst_node_id == 2)
    files = {path.name: path.read_bytes() for path in place.global_adapter(1).iterdir()}
    assert bundle_of(second.content) == pack(files)
    assert about(second.content)["round"] == 2


def test_an_answer_that_comes_when_its_round_is_made_is_late(place, start):
    party, grid, exchange = start(rounds=2, deadline="0s")
    late = answer(place, "C")
    for node in (1, 2):
        grid.answers[node, "1"] = answer(place, NODES[node])
    look(party, exchange, 2)
    assert place.newest_round() == 1
    look(party, exchange)
    grid.answers[3, "1"] = late
    look(party, exchange)
    assert ("late", 1, "C") in events(place)
    assert (place.late / "001/C").is_dir()


def test_an_older_contribution_that_another_node_sends_again_takes_nobodys_place(place, start):
    party, grid, exchange = start(rounds=2, deadline="0s")
    look(party, exchange)
    for node, site in NODES.items():
        grid.answers[node, "1"] = answer(place, site)
    look(party, exchange, 2)
    assert place.newest_round() == 1
    look(party, exchange)
    grid.answers[3, "2"] = answer(place, "B", 1)
    look(party, exchange)
    for node in (1, 2):
        grid.answers[node, "2"] = answer(place, NODES[node], 2)
    look(party, exchange, 3)
    assert set(archive.archived_global(place, PLAN, 2).record.sites) == {"A", "B"}


def test_a_node_that_fails_is_asked_again_and_one_that_is_gone_is_not_waited_for(place, start):
    party, grid, exchange = start(deadline="0s")
    grid.here.discard(3)
    look(party, exchange)
    grid.answers[1, "1"] = Error(1, "the node is not available")
    grid.answers[2, "1"] = make_content(None, exit_code=5)
    look(party, exchange, 2)
    assert [grid.count(node, 1) for node in NODES] == [2, 2, 0]
    for node in (1, 2):
        grid.answers[node, "1"] = answer(place, NODES[node])
    assert look(party, exchange, 2)
    assert set(archive.archived_global(place, PLAN, 1).record.sites) == {"A", "B"}


@pytest.mark.parametrize(("more", "ends"), [({}, False), ({"simulation.sites": "/sites"}, True)])
def test_settings_that_a_simulated_node_refuses_end_the_run(more, ends, start):
    party, grid, exchange = start(**more)
    look(party, exchange)
    grid.answers[1, "1"] = make_content(None, exit_code=UsageError.exit_code)
    with pytest.raises(UsageError, match="refuses the run's settings") if ends else contextlib.nullcontext():
        look(party, exchange)


@pytest.mark.parametrize("kind", ["stranger", "junk", "of no site", "nothing"])
def test_what_does_not_pass_is_refused_and_the_others_round_goes_on(kind, place, start):
    party, grid, exchange = start(deadline="0s")
    look(party, exchange)
    grid.answers[3, "1"] = {
        "stranger": answer(place, "C", signer=SIGNERS["stranger"]),
        "junk": make_content(b"junk", site="C", round=1),
        "of no site": make_content(b"junk", site="../../x", round=1),
        "nothing": make_content(None),
    }[kind]
    for node in (1, 2):
        grid.answers[node, "1"] = answer(place, NODES[node])
    assert look(party, exchange, 3)
    assert set(archive.archived_global(place, PLAN, 1).record.sites) == {"A", "B"}
    assert (("refused", 1, "C") in events(place)) == (kind in ("stranger", "junk"))
    assert not list(place.root.parent.glob("**/x*"))


def test_a_node_that_answers_as_another_site_takes_nothing_away(place, start):
    party, grid, exchange = start(deadline="0s")
    look(party, exchange)
    for node in (1, 2):
        grid.answers[node, "1"] = answer(place, NODES[node])
    grid.answers[3, "1"] = answer(place, "A", signer=SIGNERS["stranger"])
    assert look(party, exchange, 3)
    assert set(archive.archived_global(place, PLAN, 1).record.sites) == {"A", "B"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"round": 1}, "there is no setting 'round'"),
        ({"rounds": "1"}, "rounds: expected int, found str"),
        ({"rounds": True}, "rounds: expected int, found bool"),
    ],
)
def test_settings_are_checked(given, said):
    with pytest.raises(UsageError, match=said):
        read_settings(given, RUN_SETTINGS)
    assert read_settings({"workspace": "x", "key": ""}, client_app.SETTINGS)["key"] is None
