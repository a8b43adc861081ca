"""A round on one machine, the same round by hand in three folders, and what is written."""

import json
import shutil

import numpy as np
import pytest
from helpers.by_hand import ADAPTER_FILES, by_hand
from helpers.crashing import snapshot
from helpers.plain import answer_loss, loaded_logits

from fedmed_cli.cli.app import main
from fedmed_cli.federation import simulation
from fedmed_cli.federation.status import read_status
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.reporting.workspace_records import read_records
from fedmed_cli.workspace import Workspace

pytestmark = pytest.mark.usefixtures("float32")


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [["ABC", "ABC"], ["A", "B", "C", "C", "ABC"]], ids=["all", "relay"])
def test_rounds_and_the_same_by_hand_in_three_folders_give_the_same_bytes(split_workspace, tiny_base, tmp_path, rounds):
    root, relay = split_workspace.root, [sites for sites in rounds if len(sites) == 1]
    if relay:
        plan = root / "federation.toml"
        plan.write_text(plan.read_text().replace("min_sites = 2", "min_sites = 1"))
    argv = ["round", "-q", "--rounds", str(len(rounds)), "--relay", str(len(relay))]
    assert main([*argv, "-C", str(root), "--base", str(tiny_base)]) == 0
    coordinator = by_hand(root, tiny_base, tmp_path / "hand", rounds)
    for number, sites in enumerate(rounds, 1):
        assert {path.name for path in (root / f"rounds/{number:03d}").iterdir()} == {*sites, "global"}
        for name in (*sites, "global"):
            for file in ADAPTER_FILES:
                path = f"rounds/{number:03d}/{name}/{file}"
                assert (root / path).read_bytes() == (coordinator / path).read_bytes(), path
            record = "aggregate.json" if name == "global" else "contribution.json"
            kind = Aggregate if name == "global" else Contribution
            one, two = (
                kind.read(home / f"rounds/{number:03d}/{name}/{record}").to_dict() for home in (root, coordinator)
            )
            if name == "global":  # it names files whose `run` objects differ
                for value in (one, two):
                    value.pop("parent_record", None)
                    for decision in value["sites"].values():
                        del decision["contribution"]
            del one["run"], two["run"]
            assert one == two
    assert main(["verify", "-q", "--recompute", "-C", str(root)]) == 0


def test_the_order_of_a_relay(split_workspace):
    plan = split_workspace.read_plan()
    found = ["".join(simulation.taking_part(plan, number, relay=7)) for number in range(1, 9)]
    assert found == ["A", "B", "C", "C", "B", "A", "A", "ABC"]


def test_a_relay_that_cannot_be_made_is_refused_before_anything_is_trained(split_workspace, tiny_base, fails):
    plan = split_workspace.root / "federation.toml"
    argv = ["round", "--rounds", "3", "--relay", "2", "-C", str(split_workspace.root), "--base", str(tiny_base)]
    assert "and the plan requires 2" in fails(2, *argv)
    plan.write_text(plan.read_text().replace("min_sites = 2", "min_sites = 1"))
    assert "robust means" in fails(2, *argv, "--robust", "geometric-median")
    assert "crosseval" in fails(2, *argv, "--weights", "crosseval")
    assert "momentum" in fails(2, *argv, "--server-momentum", "0.5")
    assert not split_workspace.adapters.exists()


def test_a_relay_says_whose_turn_it_is_and_where_it_ends(trained_workspace, tiny_base, capsys):
    plan = trained_workspace.root / "federation.toml"
    plan.write_text(plan.read_text().replace("min_sites = 2", "min_sites = 1"))
    argv = ["round", "-C", str(trained_workspace.root), "--base", str(tiny_base)]
    assert main([*argv, "--rounds", "1", "--relay", "2"]) == 0
    said = capsys.readouterr().err
    assert "rounds of one site each: 1 A;" in said
    assert "--rounds 3 ends with all" in said
    assert "site B: its contribution to round 1 is left out: it is the turn of A" in said
    assert main([*argv, "--rounds", "2"]) == 0
    assert "round 1 was of one site; from here on all take part" in capsys.readouterr().err
    assert main([*argv, "--rounds", "3", "--relay", "2"]) == 0
    assert "--relay 2: these rounds are made already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_round_that_was_made_but_not_measured_is_finished_by_the_same_command(round_workspace, tiny_base, capsys):
    root = round_workspace.root
    argv = ["round", "--rounds", "1", "-C", str(root), "--base", str(tiny_base)]
    metrics, report = root / "metrics.jsonl", root / "reports/report.html"
    lines = metrics.read_text().splitlines(keepends=True)
    logged = [line for line in lines if json.loads(line)["event"] == "round"]
    assert len(logged) == 1
    before = (round_workspace.global_adapter(1) / "adapter_model.safetensors").read_bytes()
    metrics.write_text("".join(line for line in lines if line not in logged))  # as a kill after the aggregate leaves it
    report.unlink()
    orphan = root / ".fedmed/measurements/.half.json.123.tmp"
    orphan.write_text("{")
    assert main(argv) == 0
    assert "was not measured on the coordinator's examples: doing so now" in capsys.readouterr().err
    again = [line for line in metrics.read_text().splitlines() if json.loads(line)["event"] == "round"]
    assert len(again) == 1
    ours, first = json.loads(again[0]), json.loads(logged[0])
    assert ours.keys() == first.keys()
    for name, value in first.items():  # the first may have been measured in bfloat16
        assert ours[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    assert report.exists()
    assert not orphan.exists()
    report.unlink()
    orphan.write_text("{")
    assert main(argv) == 0  # measured by now: what is left is the report
    assert report.exists()
    assert not orphan.exists()
    assert (round_workspace.global_adapter(1) / "adapter_model.safetensors").read_bytes() == before
    written = report.stat().st_mtime_ns
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rounds": [], "report": None}
    assert report.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_round_that_was_started_over_is_not_measured_yet(round_workspace, tiny_base, capsys):
    root, metrics = round_workspace.root, round_workspace.root / "metrics.jsonl"
    argv = ["round", "--rounds", "1", "-C", str(root), "--base", str(tiny_base)]
    old = metrics.read_text()
    shutil.rmtree(root / "rounds")
    shutil.rmtree(root / "adapters")
    assert main([*argv, "-q", "--max-steps", "5"]) == 0
    metrics.write_text(old)  # as a kill before measuring leaves it
    assert read_records(round_workspace).rounds[0].measured_after is None
    assert read_status(round_workspace).last.measured_on != "coordinator's other examples"
    capsys.readouterr()
    assert main(argv) == 0
    assert "was not measured on the coordinator's examples: doing so now" in capsys.readouterr().err
    (measured,) = read_records(round_workspace).rounds
    newest = json.loads(metrics.read_text().splitlines()[-1])
    assert measured.measured_after == newest["coordinator_after"] is not None
    assert newest["adapter"] == measured.aggregate.adapter


@pytest.mark.slow
def test_the_round_that_is_measured_late_is_named(round_workspace, tiny_base, capsys):
    argv = ["round", "-C", str(round_workspace.root), "--base", str(tiny_base)]
    assert main([*argv, "-q"]) == 0
    metrics = round_workspace.root / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["event"] != "round"))
    capsys.readouterr()
    assert main([*argv, "--rounds", "1"]) == 0
    assert "round 2 existed already and is measured now" in capsys.readouterr().out


@pytest.mark.slow
def test_a_round_resumes_with_the_contributions_that_are_there(split_workspace, tiny_base):
    root = split_workspace.root
    whole = Workspace(shutil.copytree(root, root.parent / "whole"))
    assert main(["round", "-q", "-C", str(whole.root), "--base", str(tiny_base)]) == 0
    assert main(["train-local", "-q", "--site", "A", "-C", str(root), "--base", str(tiny_base)]) == 0
    before = (root / "adapters/A/contribution.json").read_bytes()
    assert main(["round", "-q", "--rounds", "1", "-C", str(root), "--base", str(tiny_base)]) == 0
    assert (root / "rounds/001/A/contribution.json").read_bytes() == before
    weights = "rounds/001/global/adapter_model.safetensors"
    assert (root / weights).read_bytes() == (whole.root / weights).read_bytes()
    after = snapshot(root)
    assert main(["round", "-q", "--rounds", "1", "-C", str(root), "--base", str(tiny_base)]) == 0
    assert snapshot(root) == after


def test_contributions_of_other_steps_are_named(trained_workspace, tiny_base, capsys):
    argv = ["round", "-C", str(trained_workspace.root), "--base", str(tiny_base)]
    record = Contribution.read(trained_workspace.root / "adapters/A/contribution.json")
    other = Workspace(shutil.copytree(trained_workspace.root, trained_workspace.root.parent / "other"))
    assert main(argv) == 0
    assert "asked for now" not in capsys.readouterr().err
    argv[2] = str(other.root)
    assert main([*argv, "--max-steps", "100", "--gradient-accumulation-steps", "2"]) == 0
    words = f"site A: trained {record.max_steps} steps of 2 x 1 examples, and 100 of 2 x 2 are asked for now"
    assert words in capsys.readouterr().err


def test_train_local_keeps_the_older_contribution(trained_workspace, tiny_base):
    root = trained_workspace.root
    before = snapshot(root / "adapters/A")
    argv = ["train-local", "-q", "--site", "A", "--max-steps", "5", "-C", str(root), "--base", str(tiny_base)]
    assert main(argv) == 0
    assert Contribution.read(root / "adapters/A/contribution.json").max_steps == 5
    (kept,) = (root / ".fedmed/replaced").iterdir()
    assert snapshot(kept) == before


def test_every_adapter_loads_with_plain_peft_and_changes_the_logits(round_workspace, tiny_base):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 40)[None]
    folders = [*round_workspace.adapters.iterdir(), *round_workspace.round(1).iterdir()]
    assert len(folders) == 7
    seen = []
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        seen.append(loaded_logits(model, folder, ids))
    assert len({float(logits.sum()) for logits in seen}) == 4  # A, B, C twice, and the global one


def test_fedmed_and_plain_peft_agree_on_the_logits_of_the_global_adapter(round_workspace, tiny_base):
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from fedmed_cli.adapters import gate
    from fedmed_cli.models import bases, language_model

    plan = round_workspace.read_plan()
    path = round_workspace.global_adapter(1)
    lm = language_model.load(bases.find_for_plan(plan.base, str(tiny_base), None, print), "cpu")
    lm.use(gate.read_global(path, plan).adapter)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = lm.model(ids).logits, plain(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_compare_measures_what_plain_transformers_measure(round_workspace, tiny_base, capsys):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = round_workspace.root
    argv = ["compare", "--json", "--no-answers", "-C", str(root), "--base", str(tiny_base)]
    capsys.readouterr()
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    record = Comparison.read(root / "reports/compare.json")
    assert record.to_dict() == printed
    assert set(record.scores) == {"base", "A", "B", "C", "global", "factor-mean"}

    plan = round_workspace.read_plan()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [json.loads(line) for line in (root / "data/test.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    for name in ("base", "global"):
        if name == "global":
            model = peft.PeftModel.from_pretrained(model, round_workspace.global_adapter(1))
        nll, num_tokens = np.sum([answer_loss(model, tokenizer, plan, row) for row in rows], axis=0)
        score = record.scores[name]["overall"]
        assert score.num_tokens == num_tokens
        assert score.loss == pytest.approx(nll / num_tokens, abs=1e-4)


def test_the_test_set_is_disjoint_from_all_that_was_trained_on(round_workspace):
    def texts(path):
        return {json.loads(line)["answer"] for line in path.read_text().splitlines()}

    data = round_workspace.data
    test, coordinator = texts(data / "test.jsonl"), texts(data / "coordinator.jsonl")
    assert not test & coordinator
    for site in "ABC":
        for part in ("train", "validation"):
            assert not (test | coordinator) & texts(data / site / f"{part}.jsonl")


@pytest.mark.slow
def test_a_measurement_is_cached_by_adapter_and_set(round_workspace, tiny_base, monkeypatch):
    from fedmed_cli.evaluation import measuring

    root = round_workspace.root
    argv = ["compare", "-q", "--no-answers", "-C", str(root), "--base", str(tiny_base)]
    assert main(argv) == 0
    monkeypatch.setattr(measuring, "measure", None)  # a second measurement would fail
    assert main(argv) == 0


@pytest.mark.slow
def test_training_lowers_the_loss_on_examples_it_never_saw(split_workspace, tiny_base):
    argv = ["train-local", "-q", "--site", "A", "--max-steps", "40", "-C", str(split_workspace.root)]
    assert main([*argv, "--base", str(tiny_base)]) == 0
    record = Contribution.read(split_workspace.contribution("A") / "contribution.json")
    assert record.validation_after.mean < record.validation_before.mean - 0.2
    assert record.num_trained_examples in (79, 80)  # an epoch may end with a batch of one
    assert len(record.losses) == 40


@pytest.mark.slow
def test_a_hospital_with_its_own_file(tiny_base, split_workspace, tmp_path, capsys):
    home = tmp_path / "hospital"
    argv = ["init", "-q", "--names", "A,B", "--base", str(tiny_base), "--lora-r", "4", "--max-length", "256"]
    assert main([*argv, "-C", str(home)]) == 0
    rows = "".join((split_workspace.data / f"{site}/train.jsonl").read_text() for site in "ABC")
    (tmp_path / "own.jsonl").write_text(rows)
    argv = ["train-local", "--site", "B", "--data", str(tmp_path / "own.jsonl"), "--group-by", "focus"]
    argv += ["--max-steps", "2", "-C", str(home), "--base", str(tiny_base), "--json"]
    capsys.readouterr()
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    parts = ("train", "validation", "test")
    sets = {part: (home / f"data/B/{part}.jsonl").read_text().splitlines() for part in parts}
    assert record["num_examples"] == len(sets["train"]) > len(sets["test"]) > 0
    assert sum(map(len, sets.values())) == len(rows.splitlines())
    focus = {part: {json.loads(line)["focus"] for line in lines} for part, lines in sets.items()}
    assert not focus["train"] & focus["test"]
    assert not focus["train"] & focus["validation"]
    assert main(["compare", "--site", "B", "-q", "--no-answers", "-C", str(home), "--base", str(tiny_base)]) == 0
    assert set(Comparison.read(home / "reports/compare-B.json").scores) == {"base", "B"}


@pytest.mark.slow
def test_an_accepted_global_adapter_is_filed_and_a_different_one_refused(round_workspace, tiny_base, tmp_path, fails):
    root, home = round_workspace.root, tmp_path / "B"
    (home / "data").mkdir(parents=True)
    shutil.copy(root / "federation.toml", home)
    shutil.copytree(root / "data/B", home / "data/B")
    sent = tmp_path / "sent"
    shutil.copytree(round_workspace.global_adapter(1), sent)
    argv = ["train-local", "--site", "B", "-C", str(home), "--base", str(tiny_base), "--global", str(sent)]
    assert main([*argv, "-q"]) == 0
    assert snapshot(home / "rounds/001/global") == snapshot(sent)
    assert Contribution.read(home / "adapters/B/contribution.json").round == 2
    other = tmp_path / "other"
    out = ["--output", str(other), "--weights", "uniform", "--exclude", "A"]
    assert main(["aggregate", "-q", "-C", str(root), *out]) == 0
    before = snapshot(home)
    assert "already filed" in fails(6, *argv[:-1], other)
    assert snapshot(home) == before


def test_stack_is_the_exact_mean_of_the_logits_deltas(trained_workspace, tiny_base, tmp_path):
    """A forward pass through PEFT with the stacked adapter equals one through the dense weighted mean."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from fedmed_cli.adapters import gate

    root = trained_workspace.root
    stacked = tmp_path / "stacked"
    argv = ["aggregate", "-q", "-C", str(root), "--method", "stack", "--output", str(stacked), "--clip", "0"]
    assert main([*argv, "--weights", "tokens"]) == 0
    assert not (root / "rounds").exists()
    record = Aggregate.read(stacked / "aggregate.json")
    plan = trained_workspace.read_plan()
    dense = AutoModelForCausalLM.from_pretrained(tiny_base)
    for module in plan.modules:
        delta = sum(
            record.sites[site].weight
            * one.scale(module)
            * one.factors[module][1].astype(np.float64)
            @ one.factors[module][0]
            for site in "ABC"
            for one in [gate.read_from_anyone(root / "adapters" / site).adapter]
        )
        weight = dense.get_submodule(module).weight
        weight.data += torch.from_numpy(delta).to(weight.dtype)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), stacked)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        difference = (plain(ids).logits - dense(ids).logits).abs().max()
        moved = (dense(ids).logits - AutoModelForCausalLM.from_pretrained(tiny_base)(ids).logits).abs().max()
    assert difference < 1e-4
    assert moved > 1e-2
