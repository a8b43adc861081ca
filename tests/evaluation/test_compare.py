"""`fedmed compare`: which adapters, on what, and what is said of their differences."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from helpers.factories import write_adapter
from helpers.plain import answer_loss

from fedmed_cli.cli.app import main
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import UsageError
from fedmed_cli.federation import steps
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.measures import Interval

pytestmark = [pytest.mark.usefixtures("float32"), pytest.mark.slow]


@pytest.fixture(scope="module")
def compared(round_once, tiny_base, tmp_path_factory):
    """A workspace after one round with its comparison, made with every option that costs nothing."""
    root = shutil.copytree(round_once, tmp_path_factory.mktemp("compared") / "work")
    twin = f"twin={root / 'rounds/001/global'}"
    argv = ["compare", "-q", "--no-answers", "-C", str(root), "--base", str(tiny_base), "--by-column", "fedmed_site"]
    alone = f"B={root / 'rounds/001/B'}"  # after one round that is what B reached without the others
    assert main([*argv, "--by-column", "focus", "--adapter", twin, "--alone", alone, "--all-rounds"]) == 0
    return root, Comparison.read(root / "reports/compare.json")


@pytest.fixture(scope="module")
def measured(compared, tiny_base):
    """Loss of each test example under base and adapters, one at a time by plain transformers and PEFT."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fedmed_cli.workspace import Workspace

    root, _ = compared
    plan = Workspace(root).read_plan()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [json.loads(line) for line in (root / "data/test.jsonl").read_text().splitlines()]
    losses = {}
    for name in ("base", "A", "global"):
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        if name != "base":
            model = peft.PeftModel.from_pretrained(model, root / "rounds/001" / name)
        losses[name] = np.array([answer_loss(model, tokenizer, plan, row) for row in rows])
    return rows, losses


def test_rows_are_base_sites_global_and_the_mean_of_factors(compared):
    root, record = compared
    assert set(record.scores) == {"base", "A", "B", "C", "global", "factor-mean", "twin", "alone-B"}
    assert record.adapters["base"] is None
    assert record.adapters["global"] == Aggregate.read(root / "rounds/001/global/aggregate.json").adapter
    assert record.round == 1
    assert record.site is None
    assert record.run["operations"] == "attention, linear"  # and none of those that only training uses


def test_the_mean_of_factors_is_the_weighted_mean_of_each_factor(compared):
    import safetensors.numpy

    from fedmed_cli.adapters import gate
    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.workspace import Workspace

    root, record = compared
    plan = Workspace(root).read_plan()
    aggregate = Aggregate.read(root / "rounds/001/global/aggregate.json")
    assert aggregate.method == "svd"
    total = {}
    weights = {site: aggregate.server_lr * one.weight * one.clip_factor for site, one in aggregate.sites.items()}
    start = initial_factors(plan)
    for site, weight in weights.items():
        tensors = safetensors.numpy.load_file(root / f"rounds/001/{site}/adapter_model.safetensors")
        for name, tensor in tensors.items():
            total[name] = total.get(name, 0) + weight * tensor.astype(np.float64)
    factors = {}
    for module, (a, b) in start.items():
        names = [f"base_model.model.{module}.lora_{factor}.weight" for factor in "AB"]
        rest = 1 - sum(weights.values())
        factors[module] = tuple(
            (total[name] + rest * part).astype(np.float32) for name, part in zip(names, (a, b), strict=True)
        )
    folder = write_adapter(root.parent / "mean", plan_adapter(plan, factors))
    ours = _candidate(root, "factor-mean")
    for module, (a, b) in gate.read_folder(folder, plan).adapter.factors.items():
        assert np.allclose(ours.factors[module][0], a, atol=1e-7)
        assert np.allclose(ours.factors[module][1], b, atol=1e-7)
    assert record.adapters["factor-mean"] == ours.digest != record.adapters["global"]


def _candidate(root, name):
    from fedmed_cli.evaluation import compared_adapters
    from fedmed_cli.workspace import Workspace

    place = Workspace(root)
    return compared_adapters.workspace_adapters(place, place.read_plan())[name]


def test_losses_tallies_and_differences_by_site_are_those_of_plain_transformers(compared, measured):
    _, record = compared
    rows, losses = measured
    home = np.array([row["fedmed_site"] for row in rows])
    for site in ("overall", "A", "B", "C"):
        here = np.ones(len(rows), bool) if site == "overall" else home == site
        tokens = losses["base"][here, 1].sum()
        for name in ("base", "A", "global"):
            score = record.scores[name][site]
            assert score.loss == pytest.approx(losses[name][here, 0].sum() / tokens, abs=1e-4)
            assert score.num_examples == here.sum()
            if name != "base":
                difference = losses[name][here, 0] - losses["base"][here, 0]
                assert score.against_base.mean == pytest.approx(difference.sum() / tokens, abs=1e-4)
                assert score.tally.wins == pytest.approx((difference < 0).sum(), abs=1)
                assert score.tally.ties == 0
                assert score.tally.wins + score.tally.losses == here.sum()
    elsewhere = home != "A"
    difference = (losses["global"] - losses["A"])[elsewhere, 0].sum() / losses["base"][elsewhere, 1].sum()
    assert record.on_other_sites["A"].mean == pytest.approx(difference, abs=1e-4)
    assert set(record.on_other_sites) == {"A", "B", "C", "alone-B"}
    assert record.on_other_sites["alone-B"] == record.on_other_sites["B"]
    difference = record.scores["global"]["B"].loss - record.scores["alone-B"]["B"].loss
    assert {site: one.mean for site, one in record.joined.items()} == {"B": pytest.approx(difference, abs=1e-9)}
    worst = max("ABC", key=lambda site: record.scores["global"][site].against_base.mean)
    assert record.worst_sites["global"] == worst


def test_identical_adapters_differ_by_exactly_nothing(compared):
    _, record = compared
    assert record.adapters["twin"] == record.adapters["global"]
    for part in ("overall", "A", "B", "C"):
        assert record.scores["twin"][part].against_global == Interval(0.0, 0.0, 0.0)
        assert record.scores["twin"][part].against_base == record.scores["global"][part].against_base


def test_a_column_of_sites_gives_the_parts_of_the_sites_and_rare_values_are_pooled(compared, measured):
    _, record = compared
    rows, _ = measured
    for site in "ABC":
        count = sum(row["fedmed_site"] == site for row in rows)
        expected = record.scores["global"][site] if count >= 10 else None
        assert record.columns["fedmed_site"].get(site, {}).get("global") == expected
    focus = [row["focus"] for row in rows]
    labels = {value for value in focus if focus.count(value) >= 10}
    assert set(record.columns["focus"]) == labels | {"other"}
    assert sum(scores["base"].num_examples for scores in record.columns["focus"].values()) == len(rows)


def test_values_that_are_rare_long_or_too_many_are_pooled():
    from fedmed_cli.evaluation import compare

    def column_parts(values, group=str):
        rows = [Example(str(i), "q", "a", {"kind": value} if value else {}) for i, value in enumerate(values)]
        return compare.column_parts(rows, "kind", [group(i) for i in range(len(rows))])

    values = ["often"] * 10 + ["rare"] * 9 + ["x" * 81] * 12 + ["a\tb"] * 12 + [""] * 11
    parts = column_parts(values)
    assert {value: len(indices) for value, indices in parts.items()} == {"none": 11, "often": 10, "other": 33}
    assert sorted(i for indices in parts.values() for i in indices) == list(range(len(values)))
    many = column_parts([f"v{i:02d}" for i in range(compare.MAX_VALUES + 5) for _ in range(10)])
    assert len(many) == compare.MAX_VALUES + 1
    assert len(many["other"]) == 50
    # Twelve rows of one patient are one group: the value is that patient's.
    assert column_parts(["one patient"] * 12 + ["many"] * 12, lambda i: "P1" if i < 12 else str(i)).keys() == {
        "many",
        "other",
    }


def test_the_group_column_is_refused_but_of_the_corpus(split_workspace):
    from fedmed_cli.evaluation.compare import TestSet, test_set

    with pytest.raises(UsageError, match="--by-column: 'patient' is the column that groups examples"):
        TestSet([], "x", "patient", has_patients=True).check_columns(["ward", "patient"])
    TestSet([], "x", "patient", has_patients=True).check_columns(["ward"])
    corpus = test_set(split_workspace, None, 100, print)
    assert (corpus.group_by, corpus.has_patients) == ("focus", False)
    corpus.check_columns(["focus"])


def test_no_text_of_an_example_is_in_the_record(compared):
    root, _ = compared
    text = (root / "reports/compare.json").read_text()
    for line in (root / "data/test.jsonl").read_text().splitlines():
        row = json.loads(line)
        for part in (row["question"], row["answer"][:60]):
            assert part not in text


def test_an_adapter_that_was_not_applied_is_an_error_and_no_row(round_workspace, tiny_base, fails, monkeypatch):
    from fedmed_cli.models.language_model import LanguageModel

    use = LanguageModel.use
    other = _candidate(round_workspace.root, "B").digest
    monkeypatch.setattr(
        LanguageModel, "use", lambda lm, adapter: use(lm, None if adapter and adapter.digest == other else adapter)
    )
    argv = ["compare", "--no-answers", "-C", round_workspace.root, "--base", tiny_base]
    message = fails(4, *argv)
    assert "adapter B was not applied" in message
    assert not (round_workspace.root / "reports/compare.json").exists()


def test_an_adapter_of_zeros_is_the_base_and_no_error(round_workspace, tiny_base, tmp_path):
    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter

    plan = round_workspace.read_plan()
    zero = write_adapter(tmp_path / "zero", plan_adapter(plan, initial_factors(plan)))
    root = str(round_workspace.root)
    argv = ["compare", "-q", "--no-answers", "-C", root, "--base", str(tiny_base)]
    assert main([*argv, "--adapter", str(zero)]) == 0
    score = Comparison.read(round_workspace.root / "reports/compare.json").scores["zero"]["overall"]
    assert score.against_base == Interval(0.0, 0.0, 0.0)
    assert (score.tally.wins, score.tally.ties, score.tally.losses) == (0, score.num_examples, 0)


def test_generated_answers_are_scored_as_plain_transformers_generate_them(round_workspace, tiny_base):
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fedmed_cli.evaluation.text_overlap import rouge_l, token_f1

    root = round_workspace.root
    argv = ["compare", "-q", "--no-answers", "-C", str(root), "--base", str(tiny_base), "--generate", "1000"]
    assert main([*argv, "--max-new-tokens", "12"]) == 0
    found = Comparison.read(root / "reports/compare.json").generated
    rows = [json.loads(line) for line in (root / "data/test.jsonl").read_text().splitlines()]
    assert found.num_questions == len(rows)
    assert found.num_groups == len({row["focus"] for row in rows})
    plan = round_workspace.read_plan()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), round_workspace.global_adapter(1)
    )
    rouge, overlap, unfinished = [], [], 0
    for row in rows:
        messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )[0, ids.shape[1] :]
        text = tokenizer.decode(output, skip_special_tokens=True)
        rouge.append(rouge_l(row["answer"], text))
        overlap.append(token_f1(row["answer"], text))
        unfinished += tokenizer.eos_token_id not in output
    score = found.adapters["global"]
    assert score.rouge_l.score.mean == pytest.approx(np.mean(rouge), abs=1e-9)
    assert score.token_f1.score.mean == pytest.approx(np.mean(overlap), abs=1e-9)
    assert score.num_unfinished == unfinished
    base = found.adapters["base"]
    assert 0 <= base.rouge_l.score.low <= base.rouge_l.score.mean <= base.rouge_l.score.high <= 1
    assert base.rouge_l.against_base is None
    assert score.rouge_l.against_base.mean == pytest.approx(score.rouge_l.score.mean - base.rouge_l.score.mean)


def test_the_screen_names_worst_site_and_counts(compared, tiny_base, capsys):
    root, record = compared
    argv = ["compare", "--no-answers", "-C", str(root), "--base", str(tiny_base), "--by-column", "fedmed_site"]
    capsys.readouterr()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"global: site {record.worst_sites['global']}, " in out
    assert "better / same / worse" in out
    assert "Loss by fedmed_site" in out
    assert "Global adapter minus one site's" in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--site", "Z"], 3, "the plan has no site 'Z'"),
        (["--by-column", "nothing"], 3, "--by-column nothing: the test examples have no such column, found "),
        (["--adapter", "pooled=rounds/001/global"], 2, "the name 'pooled' is taken"),
        (
            ["--alone", "Z=rounds/001/global"],
            2,
            "--alone 'Z=rounds/001/global': expected SITE=PATH with a site of A, B, C",
        ),
        (["--alone", "rounds/001/global"], 2, "expected SITE=PATH with a site of A, B, C"),
    ],
)
def test_refusals(compared, tiny_base, fails, argv, code, message):
    root, _ = compared
    assert message in fails(code, "compare", "--no-answers", "-C", root, "--base", tiny_base, *argv)


def test_an_archived_adapter_that_the_record_does_not_name_is_not_averaged(round_workspace, tiny_base, fails):
    import conftest

    plan = round_workspace.read_plan()
    conftest.change_factors(round_workspace.round(1) / "A", plan, lambda module, a, b: (a, b * 1.5))
    argv = ["compare", "--no-answers", "-C", round_workspace.root, "--base", tiny_base]
    assert "the record of round 1 names adapter" in fails(7, *argv)


def test_a_site_that_missed_the_newest_round_is_compared_with_its_last_adapter(round_workspace, tiny_base, capsys):
    from fedmed_cli.chat.choose_adapter import choose_adapter

    root = str(round_workspace.root)
    for site in "AB":
        assert main(["train-local", "-q", "--site", site, "-C", root, "--base", str(tiny_base)]) == 0
    paths = [str(round_workspace.contribution(site)) for site in "AB"]
    assert main(["aggregate", "-q", "-C", root, "--weights", "tokens", *paths]) == 0
    capsys.readouterr()
    assert main(["compare", "--no-answers", "-C", root, "--base", str(tiny_base)]) == 0
    assert "site C: its last adapter is of round 1, the newest round is 2" in capsys.readouterr().err
    record = Comparison.read(round_workspace.root / "reports/compare.json")
    assert set(record.scores) == {"base", "A", "B", "C", "global", "factor-mean"}
    assert record.round == 2
    # another contribution of C waits in the mailbox: a chat takes the archived one too
    assert main(["train-local", "-q", "--site", "C", "-C", root, "--base", str(tiny_base)]) == 0
    assert choose_adapter(round_workspace, round_workspace.read_plan(), "C", print).name.startswith(
        "adapter of site C of round 1 "
    )


def test_a_comparison_stands_in_the_report_that_round_wrote(round_workspace, tiny_base):
    page = round_workspace.reports / "report.html"
    missing = "There is no reports/compare.json"
    assert missing in page.read_text()
    argv = ["compare", "-q", "--no-answers", "-C", str(round_workspace.root), "--base", str(tiny_base)]
    assert main(argv) == 0
    assert missing not in page.read_text()
    page.unlink()
    (round_workspace.reports / "compare.json").unlink()
    assert main(argv) == 0
    assert not page.exists()


def test_the_result_is_printed_where_another_fedmed_has_the_lock_before_the_report(
    round_workspace, tiny_base, capsys, monkeypatch
):
    measure = steps.compare
    with contextlib.ExitStack() as stack:

        def measure_and_lose_the_lock(place, *args, **kwargs):
            result = measure(place, *args, **kwargs)
            stack.enter_context(place.lock())
            return result

        monkeypatch.setattr(steps, "compare", measure_and_lose_the_lock)
        capsys.readouterr()
        argv = ["compare", "--json", "--no-answers", "-C", str(round_workspace.root), "--base", str(tiny_base)]
        assert main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((round_workspace.reports / "compare.json").read_text())
    assert "no report is written: another fedmed" in err
