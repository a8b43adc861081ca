"""Differential privacy from the command line to the gate: what is promised, entered, refused and shown."""

import dataclasses
import json

import pytest

from fedmed_cli.adapters import gate, gate_steps
from fedmed_cli.cli.app import main
from fedmed_cli.errors import InputError, TrustError
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.plan import PrivacyRules
from fedmed_cli.records.privacy import NO_GUARANTEE, OUTSIDE
from fedmed_cli.training import checkpoints, private_steps
from fedmed_cli.workspace import Workspace

PRIVATE = ["--dp-noise-multiplier", "20", "--per-device-train-batch-size", "8"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMED_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config" / "privacy.jsonl"


@pytest.fixture
def train_a(split_workspace, tiny_base, book):
    """The command that trains site A in a copy of the workspace."""
    return ["train-local", "-q", "--site", "A", "-C", str(split_workspace.root), "--base", str(tiny_base)]


@pytest.fixture
def train(train_a):
    """Trains site A in a copy of the workspace; returns the exit code."""
    return lambda *more: main([*train_a, *more])


def entries(book):
    return [json.loads(line) for line in book.read_text().splitlines()]


def own_rows(tmp_path, patients=30):
    path = tmp_path / "own.jsonl"
    rows = ({"question": f"What is {n}?", "answer": f"It is {n}.", "patient": n // 2} for n in range(2 * patients))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_contribution_states_what_it_promises_and_tells_no_loss_of_a_step(train, split_workspace, book):
    assert train(*PRIVATE) == 0
    folder = gate.read_contribution(split_workspace.contribution("A"), split_workspace.read_plan())
    record, (entry,) = folder.record, entries(book)
    assert record.losses == ()
    assert record.privacy.unit == "group"  # the corpus is divided by topic
    assert record.privacy.epsilon == record.privacy.total_epsilon > 0
    assert set(record.privacy.outside) == set(OUTSIDE) < set(record.to_dict())
    expected = record.privacy.mechanism.sampling_rate * record.max_steps * record.num_examples
    assert record.num_trained_examples == int(expected)
    assert entry["adapter"] == record.adapter
    assert entry["mechanism"] == record.to_dict()["privacy"]["mechanism"]
    card = (split_workspace.contribution("A") / "README.md").read_text()
    assert "differential privacy for each group" in card
    assert NO_GUARANTEE not in card


@pytest.mark.slow
def test_without_it_the_card_says_that_nothing_is_promised(trained_workspace):
    assert NO_GUARANTEE in (trained_workspace.contribution("A") / "README.md").read_text()


@pytest.mark.slow
def test_a_record_that_promises_privacy_and_tells_losses_is_refused(train, split_workspace):
    assert train(*PRIVATE) == 0
    path = split_workspace.contribution("A") / "contribution.json"
    value = json.loads(path.read_text())
    for change in ({"losses": [1.0]}, {"kept_step": 1}, {"max_steps": 2}, {"num_trained_examples": 10**6}):
        with pytest.raises(InputError):
            Contribution.from_dict(value | change, "it")
    privacy = value["privacy"] | {"total_epsilon": value["privacy"]["epsilon"] / 2}
    with pytest.raises(InputError, match="total_epsilon"):
        Contribution.from_dict(value | {"privacy": privacy}, "it")


@pytest.mark.slow
def test_training_again_spends_again_and_the_budget_ends_it(train, train_a, book, fails):
    assert train(*PRIVATE) == 0
    assert train(*PRIVATE) == 0
    first, second = entries(book)
    assert second["adapter"] != first["adapter"]  # other draws, other noise
    assert "above the budget of 0.001" in fails(3, *train_a, *PRIVATE, "--dp-budget", "0.001")
    assert len(entries(book)) == 2


@pytest.mark.slow
def test_a_plan_that_asks_for_privacy_refuses_what_has_none(tiny_base, tmp_path, book, fails):
    root = tmp_path / "strict"
    argv = ["split", "-q", "-C", str(root), "--base", str(tiny_base), "--limit", "120", "--by", "iid"]
    argv += ["--max-epsilon", "3", "--max-steps", "2", "--max-length", "256", "--lora-r", "4"]
    assert main(argv) == 0
    train = ["train-local", "-q", "-C", str(root), "--base", str(tiny_base), "--site"]
    assert main([*train, "A", *PRIVATE]) == 0
    assert "this training has no guarantee" in fails(3, *train, "B")
    assert "above the budget of 3" in fails(3, *train, "B", "--dp-noise-multiplier", "0.8")
    message = fails(3, *train, "B", *PRIVATE, "--dp-delta", "1e-3")
    assert message == "--dp-delta: where the plan limits epsilon, expected at most 1e-05"
    plan = Workspace(root).read_plan()
    record = Contribution.read(root / "adapters" / "A" / "contribution.json")
    asked = "the plan asks for differential privacy with epsilon at most 3, found "
    for privacy, message in (
        (None, asked + "no guarantee"),
        (dataclasses.replace(record.privacy, total_epsilon=None), asked + "epsilon unbounded"),
        (dataclasses.replace(record.privacy, delta=1e-3), "an epsilon counts at a delta of at most 1e-05, found 0.001"),
    ):
        told = {} if privacy else {"losses": (1.0, 1.0), "num_trained_examples": 2, "num_trained_tokens": 2}
        other = dataclasses.replace(record, privacy=privacy, **told)
        reading = gate_steps.Reading(root, plan, records={"contribution.json": other})
        with pytest.raises(TrustError, match=message):
            gate_steps._check_privacy(reading)


def test_choosing_a_step_by_private_examples_is_refused(fails, train_a):
    assert "--eval-steps" in fails(3, *train_a, *PRIVATE, "--eval-steps", "1")


def test_more_units_a_step_than_there_are(fails, train_a):
    argv = [*train_a, "--dp-noise-multiplier", "1", "--per-device-train-batch-size", "100000"]
    assert "but the site has" in fails(3, *argv)


@pytest.mark.slow
def test_patients_are_the_unit_and_every_training_on_them_is_entered(
    tmp_path, tiny_base, trained_workspace, book, capsys
):
    root, own = tmp_path / "hospital", own_rows(tmp_path)
    root.mkdir()
    (root / "federation.toml").write_bytes(trained_workspace.plan_path.read_bytes())
    argv = ["train-local", "-q", "--site", "A", "-C", str(root), "--base", str(tiny_base), "--data", str(own)]
    argv += ["--group-by", "patient", "--near-duplicates", "off"]
    assert main([*argv, *PRIVATE]) == 0
    own.rename(own.with_name("renamed.jsonl"))
    argv[argv.index(str(own))] = str(own.with_name("renamed.jsonl"))
    assert main(argv) == 0
    with_noise, without = entries(book)
    assert with_noise["unit"] == "group"
    assert 0 < with_noise["num_units"] <= 30
    assert with_noise["data"] == without["data"]
    assert without["mechanism"] is None
    capsys.readouterr()
    assert main(["privacy", "-C", str(root), "--json", "--dp-budget", "8"]) == 0
    (spent,) = json.loads(capsys.readouterr().out)["spent"]
    assert (spent["trainings"], spent["without_guarantee"], spent["epsilon"]) == (2, 1, None)
    assert main(["privacy", "-C", str(root)]) == 0
    assert "unbounded" in capsys.readouterr().out
    # None of it is where something leaves from.
    assert not [path for path in root.rglob("*") if path.is_file() and b"fedmed/ledger" in path.read_bytes()]


def test_an_empty_ledger_says_so(capsys, tmp_path, book):
    assert main(["privacy", "-C", str(tmp_path)]) == 0
    assert "no training on records of patients" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_goes_on_after_a_kill_draws_other_noise_and_is_entered_once(
    train, book, monkeypatch, split_workspace
):
    drawn = []
    real = private_steps._normal

    def keep(size):
        drawn.append(real(size))
        return drawn[-1]

    monkeypatch.setattr(private_steps, "_normal", keep)
    saves = []

    def save_and_die(self, state):
        real_save(self, state)
        saves.append(state.step)
        if len(saves) == 1:
            raise KeyboardInterrupt

    real_save = checkpoints.Checkpoints.save
    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_die)
    assert train(*PRIVATE, "--save-steps", "1") == 130
    assert not book.exists()  # nothing of it can leave
    assert train(*PRIVATE, "--save-steps", "1") == 0
    assert len(drawn) == 3  # one step before the kill, two after
    assert len({noise.tobytes() for noise in drawn}) == 3
    (entry,) = entries(book)
    assert entry["mechanism"]["steps"] == 3


@pytest.mark.slow
def test_a_round_with_privacy_shows_what_each_site_promises(split_workspace, tiny_base, book, capsys):
    argv = ["round", "-C", str(split_workspace.root), "--base", str(tiny_base), "--rounds", "2", *PRIVATE]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "Differential privacy of round 2, as the sites state it" in out
    records = [Contribution.read(split_workspace.round(n) / "A" / "contribution.json") for n in (1, 2)]
    assert records[1].privacy.total_epsilon > records[0].privacy.total_epsilon
    assert not book.exists()  # a simulation spends nobody's budget
    page = (split_workspace.reports / "report.html").read_text()
    assert "Differential privacy of round 1, as the sites state it" in page


@pytest.mark.slow
def test_the_gate_reads_what_the_plan_asks_of_the_total(train, split_workspace):
    assert train(*PRIVATE) == 0
    assert train(*PRIVATE) == 0
    record = Contribution.read(split_workspace.contribution("A") / "contribution.json")
    plan = dataclasses.replace(split_workspace.read_plan(), privacy=PrivacyRules(record.privacy.epsilon * 1.01))
    reading = gate_steps.Reading(split_workspace.contribution("A"), plan, records={"contribution.json": record})
    with pytest.raises(TrustError, match="epsilon at most"):
        gate_steps._check_privacy(reading)
