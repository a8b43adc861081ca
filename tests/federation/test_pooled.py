"""`fedmed compare --pooled`: the upper bound, its budget, and that it is trained once."""

import json
import shutil

import pytest

from fedmed_cli.adapters import archive
from fedmed_cli.cli.app import main
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.federation import steps
from fedmed_cli.federation.pooled import gather
from fedmed_cli.records.comparison import Comparison, Pooled
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.workspace import Workspace


@pytest.fixture
def argv(round_workspace, tiny_base):
    return ["compare", "--pooled", "--no-answers", "-C", str(round_workspace.root), "--base", str(tiny_base)]


@pytest.mark.slow
def test_it_has_the_steps_and_examples_of_all_sites_and_the_global_is_measured_against_it(
    round_workspace, argv, capsys
):
    capsys.readouterr()
    assert main(argv) == 0
    out, err = capsys.readouterr()
    root = round_workspace.root
    pooled = Pooled.read(root / "reports/pooled/pooled.json")
    sites = [Contribution.read(root / f"rounds/001/{site}/contribution.json") for site in "ABC"]
    assert pooled.max_steps == len(pooled.losses) == sum(site.max_steps for site in sites) == 9
    assert pooled.num_examples == sum(site.num_examples for site in sites)
    assert pooled.num_federated_tokens == sum(site.num_trained_tokens for site in sites)
    assert 0.3 < pooled.num_trained_tokens / pooled.num_federated_tokens < 3
    assert pooled.rounds == 1
    assert f"{pooled.num_trained_tokens:,} answer tokens; the federation's rounds used" in err
    record = Comparison.read(root / "reports/compare.json")
    assert record.adapters["pooled"] == pooled.adapter
    loss = {name: record.scores[name]["overall"].loss for name in ("base", "global", "pooled")}
    share = (loss["base"] - loss["global"]) / (loss["base"] - loss["pooled"])
    recovered = record.recovered["pooled"].base
    if recovered is None:
        assert record.scores["pooled"]["overall"].against_base.high >= 0
        assert "Not clear: the bound is not better beyond chance" in out
    else:
        assert recovered.mean == pytest.approx(share)
        assert recovered.low < share < recovered.high
        assert f"{100 * share:.0f} % [" in out


@pytest.mark.slow
def test_the_parallel_bound_walks_one_sites_steps_with_all_sites_examples_in_each(round_workspace, argv):
    assert main([*argv, "--pooled-parallel", "--pooled-lr", "1e-3"]) == 0
    pooled, parallel = (
        Pooled.read(round_workspace.reports / name / "pooled.json") for name in ("pooled", "pooled-parallel")
    )
    assert (parallel.max_steps, parallel.per_device_train_batch_size) == (3, 3 * pooled.per_device_train_batch_size)
    assert parallel.learning_rate == pooled.learning_rate == 1e-3
    record = Comparison.read(round_workspace.reports / "compare.json")
    assert record.adapters["pooled-parallel"] == parallel.adapter != pooled.adapter
    assert set(record.recovered) == {"pooled", "pooled-parallel"}


def test_a_rate_without_a_bound_is_refused(round_workspace, fails):
    message = fails(2, "compare", "--pooled-lr", "1e-3", "-C", round_workspace.root)
    assert "--pooled-lr goes with --pooled or --pooled-parallel" in message
    message = fails(2, "compare", "--pooled", "--pooled-lr", "0", "-C", round_workspace.root)
    assert "--pooled-lr: expected a rate above 0 and at most 1, found 0" in message
    with pytest.raises(UsageError, match="--pooled-lr: expected a rate above 0 and at most 1, found -1"):
        steps.compare(round_workspace, steps.CompareOptions(pooled=True, pooled_lr=-1.0))


@pytest.mark.slow
def test_it_is_the_adapter_that_plain_training_on_all_examples_gives(round_workspace, tiny_base, argv):
    from fedmed_cli.adapters import archive, gate
    from fedmed_cli.data import examples
    from fedmed_cli.models import bases, language_model, prompts
    from fedmed_cli.training import loop

    assert main([*argv, "-q"]) == 0
    plan = round_workspace.read_plan()
    lm = language_model.load(bases.find_for_plan(plan.base, str(tiny_base), None, print), "cpu")
    rows = [row for site in "ABC" for row in examples.read_jsonl(round_workspace.site_data(site) / "train.jsonl")]
    encoded = [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
    start = archive.starting_adapter(round_workspace, plan, 1)
    seed = loop.order_seed(plan, "pooled", 1)
    again = loop.train(lm, plan, start, encoded, 9, seed=seed)
    kept = gate.read_from_anyone(round_workspace.reports / "pooled/adapter", plan).adapter
    assert kept.digest == again.adapter.digest


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on_and_gives_the_same_adapter(round_workspace, argv, monkeypatch, capsys):
    from fedmed_cli.training import checkpoints

    assert main([*argv, "-q"]) == 0
    whole = Pooled.read(round_workspace.reports / "pooled/pooled.json")
    shutil.rmtree(round_workspace.reports / "pooled")
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0)
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        if state.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        assert main([*argv, "-q"]) == 130
    assert not (round_workspace.reports / "pooled").exists()
    capsys.readouterr()
    assert main(argv) == 0
    assert "resuming from the checkpoint at step 5 of 9" in capsys.readouterr().err
    again = Pooled.read(round_workspace.reports / "pooled/pooled.json")
    assert (again.adapter, again.losses, again.num_trained_tokens) == (
        whole.adapter,
        whole.losses,
        whole.num_trained_tokens,
    )
    assert not (round_workspace.private / "checkpoints/pooled.npz").exists()


@pytest.mark.slow
def test_it_is_trained_once_and_anew_after_another_round(round_workspace, tiny_base, argv, monkeypatch, capsys):
    from fedmed_cli.federation import pooled

    assert main([*argv, "-q"]) == 0
    first = Pooled.read(round_workspace.reports / "pooled/pooled.json")
    calls = []
    real = pooled.train
    monkeypatch.setattr(pooled, "train", lambda *args, **named: calls.append(args[4]) or real(*args, **named))
    capsys.readouterr()
    assert main(argv) == 0
    assert "is taken from reports/pooled" in capsys.readouterr().err
    assert calls == []
    assert main(["round", "-q", "-C", str(round_workspace.root), "--base", str(tiny_base)]) == 0
    assert main([*argv, "-q"]) == 0
    assert calls == [18]
    second = Pooled.read(round_workspace.reports / "pooled/pooled.json")
    assert second.key != first.key
    assert list((round_workspace.private / "replaced").glob("pooled-*"))


def test_it_needs_rounds_and_all_sites_examples(round_workspace, split_once, tmp_path, tiny_base, fails, argv):
    other = shutil.copytree(split_once, tmp_path / "before")
    message = fails(3, "compare", "--pooled", "--no-answers", "-C", other, "--base", tiny_base)
    assert "--pooled: there is no round to compare with" in message
    (round_workspace.site_data("B") / "train.jsonl").unlink()
    assert "--pooled: data/B/train.jsonl is not here" in fails(3, *argv)


def test_only_the_bounds_that_are_asked_for_may_not_be_too_long(round_workspace, monkeypatch):
    plan, said = round_workspace.read_plan(), []
    monkeypatch.setattr("fedmed_cli.federation.pooled.MOST_STEPS", 5)  # all sites took 9, each 3
    (parallel,) = gather(round_workspace, plan, ["pooled-parallel"], None, said.append)
    assert parallel.steps == 3
    with pytest.raises(InputError, match="--pooled: 9 steps in all rounds are more than a record can hold") as caught:
        gather(round_workspace, plan, ["pooled", "pooled-parallel"], None, said.append)
    assert "--pooled-parallel alone" in caught.value.hint


def test_after_rounds_of_one_site_the_parallel_bound_does_the_work_of_all(round_workspace, monkeypatch):
    plan = round_workspace.read_plan()
    by_site = [archive.archived_contribution(round_workspace, plan, 1, site).record for site in "ABC"]
    in_turn = {1: by_site[:1], 2: by_site[1:2], 3: by_site[2:]}
    monkeypatch.setattr(Workspace, "newest_round", lambda self: 3)
    monkeypatch.setattr("fedmed_cli.federation.pooled._read_contributions", lambda place, plan, n: in_turn[n])
    pooled, parallel = gather(round_workspace, plan, ["pooled", "pooled-parallel"], None, print)
    assert (parallel.steps, parallel.batch_size) == (3, 3 * pooled.batch_size)
    assert parallel.steps * parallel.batch_size == pooled.steps * pooled.batch_size


@pytest.mark.slow
def test_no_text_is_in_its_record_and_what_is_skipped_is_said(round_workspace, argv, capsys):
    with (round_workspace.site_data("A") / "train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Why? " * 1000, "answer": "So it is."}) + "\n")
    assert main(argv) == 0
    text = (round_workspace.reports / "pooled/pooled.json").read_text()
    lines = [
        line for site in "ABC" for line in (round_workspace.site_data(site) / "train.jsonl").read_text().splitlines()
    ]
    for row in map(json.loads, lines):
        assert not any(row[name] in text for name in ("question", "answer"))
    skipped = f"pooled: 1 of {len(lines)} examples skipped: the question fills max_length"
    assert skipped in " ".join(capsys.readouterr().err.split())
