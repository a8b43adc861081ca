"""The model card of every adapter folder: read by the hub's own library, filled from records, the same bytes again."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from fedmed_cli.adapters import card, gate
from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Base, Plan


@pytest.fixture
def plan(round_workspace):
    return round_workspace.read_plan()


def adapter_of(plan: Plan):
    return plan_adapter(plan, initial_factors(plan))


def renamed(plan, name):
    return Base(name, plan.base.revision, plan.base.fingerprint, plan.base.num_bytes, plan.base.linear)


def test_every_adapter_folder_of_a_round_has_a_card_that_the_hub_reads(round_workspace):
    folders = [*round_workspace.round(1).iterdir(), *round_workspace.adapters.iterdir()]
    assert len(folders) == 7
    for folder in folders:
        data = ModelCard.load(folder / "README.md").data
        assert data.library_name == "peft"
        assert data.pipeline_tag == "text-generation"
        assert data.license == "unknown"
        assert {"lora", "federated-learning", "medical"} <= set(data.tags)
        digest = gate.read_from_anyone(folder).adapter.digest
        assert digest in (folder / "README.md").read_text()


def test_the_global_card_shows_weights_verdicts_and_what_chose_them(round_workspace):
    folder = round_workspace.global_adapter(1)
    record, text = Aggregate.read(folder / "aggregate.json"), (folder / "README.md").read_text()
    for site, one in record.sites.items():
        claimed = one.evidence.num_examples
        assert f"| {site} | {one.verdict} | {one.weight:.4f} | {claimed:,} |" in text
    seen = record.examination
    assert f"loss {seen.parent.mean:.4f} ± " in text
    assert f"{seen.result.mean:.4f} ± " in text
    assert "do not report them as results" in text
    assert ModelCard(text).data.eval_results is None  # a number that chose the weights is not published as a result


def test_a_sites_card_shows_its_validation_loss(round_workspace, plan):
    record = Contribution.read(round_workspace.round(1) / "A/contribution.json")
    adapter = adapter_of(plan)
    facts = {"site": "A", "round_number": 1, "steps": 3, "num_examples": 57, "has_canaries": False, "privacy": None}
    text = card.site_card(plan.base, adapter, **facts, before=record.validation_before, after=record.validation_after)
    (result,) = ModelCard(text).data.eval_results
    assert result.metric_value == round(record.validation_after.mean, 4)
    assert result.dataset_name == "validation examples of site A"
    assert f"| this adapter | {record.validation_after.mean:.4f} ± " in text
    assert "57 examples" in text
    unmeasured = card.site_card(plan.base, adapter, **facts, before=None, after=None)
    assert ModelCard(unmeasured).data.eval_results is None
    assert "no loss was measured" in unmeasured
    loss = Loss(2.0, 0.1, 10, 5, 100)
    again = card.site_card(plan.base, adapter, **facts, before=loss, after=loss)
    assert again == card.site_card(plan.base, adapter, **facts, before=loss, after=loss)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("a local folder", None),
        ("tiny", None),
    ],
)
def test_the_base_model_is_named_as_the_hub_knows_it_or_not_at_all(plan, name, expected):
    data = ModelCard(card.card(renamed(plan, name), adapter_of(plan), "t", "o")).data
    assert data.base_model == expected
    assert (f"base_model:adapter:{expected}" in data.tags) is (expected is not None)


@pytest.mark.parametrize(
    "name",
    [
        'x" \\',
        "a: b # c",
        "``` ![x](http://e.example/x.png)",
        "<img src=x>",
        "--- - {a: [",
        "x/y",
        "日本語 é \U0001f600",
        "'",
    ],
)
def test_a_base_models_name_is_never_markup(plan, name):
    text = card.card(renamed(plan, name), adapter_of(plan), "t", "o")
    front = text.split("---\n", 2)[1]
    keys = {"license", "library_name", "pipeline_tag", "tags"} | (
        {"base_model", "base_model_relation"} & front_keys(front)
    )
    assert set(yaml.safe_load(front)) == keys
    line = next(line for line in text.splitlines() if line.startswith("- Base model: "))
    span = re.fullmatch(r"- Base model: (`+)( ?)(.+?)\2\1(?: at `.*`)?", line)
    assert span[3] == name
    assert span[1] not in name  # nothing in the name ends the code span


def front_keys(front):
    return {line.split(":")[0] for line in front.splitlines()}
