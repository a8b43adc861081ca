"""The audit: an attacker's success is measured right, and a bound from canaries is never above the truth."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from fedmed_cli.cli.app import main
from fedmed_cli.data.canaries import write_canaries
from fedmed_cli.evaluation import audit
from fedmed_cli.evaluation.audit import audit_canaries, epsilon_low, membership
from fedmed_cli.records.audit import Audit
from fedmed_cli.workspace import Workspace


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_auc_is_that_of_scikit_learn_and_its_interval_holds_it(shift):
    rng = np.random.default_rng(1)
    members, others = np.round(rng.normal(shift, 1, 150), 1), np.round(rng.normal(0, 1, 100), 1)  # with ties
    found = membership(members, [f"m{i // 2}" for i in range(150)], others, [f"o{i}" for i in range(100)])
    labels = np.repeat([1, 0], [150, 100])
    assert found.auc.mean == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    truth = 0.5 * (1 + math.erf(shift / 2))
    assert found.auc.low <= truth <= found.auc.high
    assert found.num_groups == 175


def test_the_true_positive_rate_is_at_no_more_than_the_false_alarms():
    others = np.arange(100.0)  # one false alarm is allowed: 99
    members = np.array([98.5, 97.0, 99.5, 200.0])
    found = membership(members, list("abcd"), others, [f"o{i}" for i in range(100)])
    assert found.tpr.mean == pytest.approx(0.75)


@pytest.mark.slow
def test_intervals_by_groups_are_wider_than_by_examples():
    rng = np.random.default_rng(2)
    per_group = rng.normal(0, 1, 20).repeat(10)
    others = rng.normal(0, 1, 200)
    names = [f"o{i}" for i in range(200)]
    grouped = membership(per_group, [f"g{i // 10}" for i in range(200)], others, names).auc
    alone = membership(per_group, [f"g{i}" for i in range(200)], others, names).auc
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(("guesses", "correct"), [(100, 100), (100, 80), (40, 33)])
def test_the_bound_is_where_the_binomial_says(guesses, correct):
    low = epsilon_low(1000, guesses, correct, 0.0, 0.95)
    assert binom.sf(correct - 1, guesses, 1 / (1 + math.exp(-low))) == pytest.approx(0.05, abs=1e-3)


def test_blind_guesses_bound_nothing_and_delta_takes_from_the_bound():
    assert epsilon_low(100, 100, 55, 0.0, 0.95) == 0.0
    with_delta = epsilon_low(1000, 100, 90, 1e-4, 0.95)
    assert 0 < with_delta < epsilon_low(1000, 100, 90, 0.0, 0.95)
    assert epsilon_low(1000, 100, 90, 1e-2, 0.95) < with_delta


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_a_mechanism_of_known_epsilon_is_rarely_bounded_above_it(epsilon):
    """Randomised response is exactly epsilon-private, so 95 of 100 bounds must lie below; here of 200 runs."""
    rng = np.random.default_rng(3)
    above, largest = 0, 0.0
    for _ in range(200):
        included = rng.random(400) < 0.5
        told = included ^ (rng.random(400) < 1 / (1 + math.exp(epsilon)))
        low = audit_canaries(told + rng.random(400) * 0.1, included, 0.0).epsilon_low
        above, largest = above + (low > epsilon), max(largest, low)
    assert above <= 20  # 10 are expected at most; more than 20 once in a thousand
    assert largest > epsilon / 2  # it is not blind either


def test_canaries_that_stand_out_are_found_and_others_are_not():
    included = np.arange(200) % 2 == 0
    rng = np.random.default_rng(4)
    plain = rng.normal(0, 1, 200)
    clear, blind = audit_canaries(plain + 20 * included, included, 0.0), audit_canaries(plain, included, 0.0)
    assert (clear.found, clear.num_included) == (100, 100)
    assert clear.exposure == pytest.approx(math.log2(101))
    assert clear.epsilon_low > 3
    assert blind.epsilon_low == 0.0
    assert 0.8 < blind.exposure < 2.2


@pytest.fixture
def train(split_workspace, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMED_CONFIG", str(tmp_path / "config"))

    def run(*more):
        argv = ["train-local", "-q", "--site", "A", "-C", str(split_workspace.root), "--base", str(tiny_base)]
        assert main([*argv, *more]) == 0

    return run


def run_audit(workspace, tiny_base, capsys):
    capsys.readouterr()
    code = main(["audit", "--site", "A", "-C", str(workspace.root), "--base", str(tiny_base), "--json"])
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    path = workspace.reports / "audit-A.json"
    assert Audit.read(path).to_dict() == found
    return Audit.read(path)


@pytest.mark.slow
def test_what_was_memorised_is_found_and_noise_hides_it(tiny_base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDMED_CONFIG", str(tmp_path / "config"))
    workspace = Workspace(tmp_path / "work")
    where = ["-q", "-C", str(workspace.root), "--base", str(tiny_base)]
    modules = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    split = ["split", *where, "--limit", "90", "--by", "iid", "--max-length", "256", "--learning-rate", "1e-2"]
    assert main([*split, "--lora-r", "16", "--lora-target-modules", modules]) == 0
    # Fixed canaries and coins: what is found must not depend on what was drawn.
    rng = np.random.default_rng(5)
    texts = [tuple(" ".join(rng.choice(list("abcdefghijklmnop"), 12)) for _ in range(2)) for _ in range(40)]
    monkeypatch.setattr("os.urandom", lambda size: bytes(n % 2 for n in range(size)))
    write_canaries(workspace, "A", texts)
    monkeypatch.undo()
    monkeypatch.setenv("FEDMED_CONFIG", str(tmp_path / "config"))
    train = ["train-local", *where, "--site", "A", "--canaries", "40", "--per-device-train-batch-size", "16"]
    assert main([*train, "--canary-repeats", "20", "--max-steps", "200"]) == 0
    clear = run_audit(workspace, tiny_base, capsys)
    canaries = workspace.data / "canaries-A.jsonl"
    before = canaries.read_bytes()
    assert clear.epsilon is None
    assert clear.canaries.num_included == 20
    assert clear.canaries.found >= 15
    assert clear.canaries.epsilon_low > 0.5
    assert main([*train, "--max-steps", "20", "--dp-noise-multiplier", "20"]) == 0
    assert canaries.read_bytes() == before  # the same coins
    hidden = run_audit(workspace, tiny_base, capsys)
    assert hidden.epsilon is not None
    assert hidden.canaries.epsilon_low < clear.canaries.epsilon_low  # one training in 20 may exceed the promise by luck
    assert hidden.canaries.found < 13  # by luck 1 is, and 13 are in 6 of a million trainings
    assert canaries.stat().st_mode & 0o077 == 0
    # A second audit takes the place of the first, which is kept.
    assert len(list((workspace.private / "replaced").glob("audit-A.json-*"))) == 1


@pytest.mark.slow
def test_numbers_only_and_the_sentence_says_what_they_mean(train, split_workspace, tiny_base, capsys):
    train("--canaries", "12")
    assert main(["audit", "--site", "A", "-C", str(split_workspace.root), "--base", str(tiny_base)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "whether a given record was among the training examples" in out
    assert "No formal privacy guarantee" in out
    texts = (split_workspace.data / "canaries-A.jsonl").read_text().splitlines()
    report = (split_workspace.reports / "audit-A.json").read_text()
    assert not any(json.loads(line)["question"] in report for line in texts)
    value = json.loads((split_workspace.contribution("A") / "contribution.json").read_text())
    assert value["num_canaries"] == 12
    assert "synthetic ones for an audit among them" in (split_workspace.contribution("A") / "README.md").read_text()
    # The coins are in nothing that leaves.
    for path in split_workspace.contribution("A").iterdir():
        assert b"included" not in path.read_bytes()
    train("--canaries", "50")
    value = json.loads((split_workspace.contribution("A") / "contribution.json").read_text())
    assert value["num_canaries"] == 12  # those that are there


@pytest.mark.slow
def test_a_plan_that_limits_the_audit_keeps_pack_from_handing_over(tiny_base, tmp_path, fails, monkeypatch):
    monkeypatch.setenv("FEDMED_CONFIG", str(tmp_path / "config"))
    root = tmp_path / "work"
    argv = ["split", "-q", "-C", str(root), "--base", str(tiny_base), "--limit", "120", "--by", "iid"]
    argv += ["--max-steps", "2", "--max-length", "256", "--lora-r", "4", "--max-audit-auc", "0.99"]
    assert main(argv) == 0
    train = ["train-local", "-q", "--site", "A", "-C", str(root), "--base", str(tiny_base)]
    assert main(train) == 0
    pack = ["pack", root / "adapters" / "A", "-C", root, "--output", tmp_path / "A.fedmed.tar"]
    assert "reports/audit-A.json is not there" in fails(7, *pack)
    assert main(["audit", "-q", "--site", "A", "-C", str(root), "--base", str(tiny_base)]) == 0
    assert main([str(part) for part in pack]) == 0
    (tmp_path / "A.fedmed.tar").unlink()
    path = root / "reports" / "audit-A.json"
    value = json.loads(path.read_text())
    value["membership"]["auc"] = {"mean": 0.995, "low": 0.99, "high": 1.0}
    path.write_text(json.dumps(value))
    assert "an AUC of 0.995, above the plan's 0.99" in fails(7, *pack)
    path.write_text(json.dumps(value | {"adapter": "ab" * 32}))
    assert "is of another adapter" in fails(7, *pack)


@pytest.mark.slow
def test_without_held_out_examples_there_is_no_audit(train, split_workspace, tiny_base, fails):
    train()
    for path in split_workspace.site_data("A").glob("*"):
        if path.name != "train.jsonl":
            path.unlink()
    argv = ["audit", "--site", "A", "-C", split_workspace.root, "--base", tiny_base]
    assert "held-out" in fails(3, *argv)


def test_scores_rise_where_the_loss_fell():
    losses = audit.Losses(np.array([2.0, 4.0]), np.array([2, 2])), audit.Losses(np.array([1.0, 4.0]), np.array([2, 2]))
    assert audit.scores(*losses).tolist() == [0.5, 0.0]
