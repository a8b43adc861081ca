"""What a hospital answers over Flower, and what it does not."""

import pytest
from helpers.factories import SIGNERS, make_plan, make_workspace, write_key

from fedmed_cli.adapters.bundle import pack
from fedmed_cli.trust.audit_log import AuditLog

pytest.importorskip("flwr")

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmed_cli.errors import UsageError
from fedmed_cli.federation.flower.client_app import app, settings_of
from fedmed_cli.federation.flower.messages import about, bundle_of, make_content

pytestmark = pytest.mark.flower

PLAN = make_plan()


@pytest.fixture
def home(tmp_path):
    """A hospital after round 1, with its contribution to round 2."""
    return make_workspace(tmp_path / "home", PLAN, num_rounds=1)


@pytest.fixture
def ask(home, tmp_path, monkeypatch):
    for number, name in enumerate(("_task_id", "_run_id", "_node_id"), 1):  # a run is what Flower starts
        monkeypatch.setattr(TaskIdentity, name, number)
    key = write_key(tmp_path / "key", SIGNERS["B"])

    def call(content, kind="train", **settings):
        message = Message(content, 1, kind)
        message.metadata.__dict__["_message_id"] = "a message"
        config = {"workspace": str(home.root), "site": "B", "key": str(key)} | settings
        return app(message, Context(1, 1, config, RecordDict(), {})).content

    return call


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_contribution_that_is_there_is_sent_as_it_is(ask, home):
    for bundle in (None, pack(files(home.global_adapter(1)))):
        answer = ask(make_content(bundle, round=2))
        assert dict(about(answer)) == {"site": "B", "round": 2}
        assert bundle_of(answer) == pack(files(home.contribution("B")))
    sent = [one for one in AuditLog(home).read() if one.event == "sent"]
    assert [(one.round, one.party, one.key) for one in sent] == [(2, "B", SIGNERS["B"].fingerprint)]


def test_a_global_adapter_is_filed(ask, home, tmp_path):
    ahead = make_workspace(tmp_path / "ahead", PLAN, num_rounds=2, mailbox=False)
    answer = ask(make_content(pack(files(ahead.global_adapter(2))), round=3), kind="query")
    assert dict(about(answer)) == {"site": "B", "round": 3}
    assert bundle_of(answer) is None
    assert files(home.global_adapter(2)) == files(ahead.global_adapter(2))


@pytest.mark.parametrize(
    ("content", "settings", "code"),
    [
        (make_content(None, round=5), {}, 6),  # another round than the next one here
        (make_content(None), {}, 2),
        (make_content(b"junk", round=2), {}, 3),
        (make_content(None, round=2), {"site": "Z"}, 3),
        (make_content(None, round=2), {"learning-rate": 1.0}, 2),
        (make_content(None, round=2), {"key": ""}, 7),  # the plan pins a key, and there is none
    ],
)
def test_what_goes_wrong_stays_in_the_house_but_for_its_exit_code(content, settings, code, ask):
    answer = ask(content, **settings)
    assert dict(about(answer)) == {"exit_code": code}
    assert bundle_of(answer) is None


def test_not_even_the_text_of_an_unexpected_error_leaves(ask, home, caplog):
    """Flower sends the text of an exception to the server; one of the system's own names a file, for example."""
    for path in sorted(home.private.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    home.private.rmdir()
    home.private.write_text("a file where a folder should be")
    with caplog.at_level("INFO", "flwr"):
        answer = ask(make_content(None, round=2))
    assert dict(about(answer)) == {"exit_code": 1}
    assert list(answer) == ["about"]
    assert "this is a bug in fedmed: " in caplog.text
    assert str(home.root) not in caplog.text


def number(index, count=3):
    return {"partition-id": index, "num-partitions": count}


def test_a_simulated_node_is_the_site_of_the_plan_with_its_number(home):
    run = {"workspace": str(home.root), "simulation.sites": "/sites", "simulation.max-steps": 0}
    found = [settings_of(number(index), run | {"simulation.keys": "/keys"}) for index in range(3)]
    assert [one["site"] for one in found] == list(PLAN.sites.names) == ["A", "B", "C"]
    assert [one["workspace"] for one in found] == ["/sites/A", "/sites/B", "/sites/C"]
    assert [one["key"] for one in found] == ["/keys/A", "/keys/B", "/keys/C"]
    assert settings_of(number(0), run) == settings_of({"workspace": "/sites/A", "site": "A"}, {})
    assert settings_of(number(0), run | {"simulation.max-steps": 7})["max-steps"] == 7


@pytest.mark.parametrize("node", [number(0, 2), number(0, 4), number(3), number(-1), number("A")])
def test_simulated_nodes_are_as_many_as_sites(node, home):
    with pytest.raises(UsageError, match="the plan has 3 sites"):
        settings_of(node, {"workspace": str(home.root), "simulation.sites": "/sites"})


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (number(0), "the node has no settings but its number"),
        ({"partition-id": 0, "site": "A"}, "there is no setting 'partition-id'"),
        (number(0) | {"site": "A"}, "there is no setting 'partition-id'"),
    ],
)
def test_a_hospital_takes_no_settings_from_the_run(node, said, home):
    """A run is the coordinator's: it has no say in which folder of a hospital is read."""
    run = {"workspace": str(home.root), "simulation.sites": "/sites" if "site" in node else ""}
    with pytest.raises(UsageError, match=said):
        settings_of(node, run)
