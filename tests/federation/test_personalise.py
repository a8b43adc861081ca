"""`fedmed personalise`: a hospital's private adapter is adopted where it helps, and does not leave."""

import errno
import json
import os
import shutil
import stat

import numpy as np
import pytest
from helpers.plain import answer_loss

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.adapter import plan_adapter
from fedmed_cli.adapters.folder import PersonalFolder
from fedmed_cli.adapters.low_rank import cut_to_rank, relate
from fedmed_cli.chat.choose_adapter import all_adapters, choose_adapter
from fedmed_cli.cli.app import main
from fedmed_cli.data.site_data import workspace_data
from fedmed_cli.errors import UsageError
from fedmed_cli.events import Events
from fedmed_cli.federation import steps
from fedmed_cli.federation.personalising import SHARES, mix
from fedmed_cli.federation.site import split_validation
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.personal import Personal
from fedmed_cli.training import checkpoints
from fedmed_cli.training.options import PrivacyOptions, SiteSettings, TrainingOptions
from fedmed_cli.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def personal_once(round_once, tiny_base, float32, tmp_path_factory):
    """A workspace after one round in which site C, whose tiny model has learnt little so far, has trained on."""
    root = shutil.copytree(round_once, tmp_path_factory.mktemp("personal") / "work")
    validation = root / "data/C/validation.jsonl"  # its own few examples, and more of the same kind
    validation.write_text(validation.read_text() + (root / "data/test.jsonl").read_text())
    argv = ["personalise", "--site", "C", "--max-steps", "40", "-C", str(root), "--base", str(tiny_base)]
    assert main(argv) == 0
    return root


@pytest.fixture
def place(personal_once, tmp_path):
    from fedmed_cli.workspace import Workspace

    return Workspace(shutil.copytree(personal_once, tmp_path / "work"))


def test_it_is_adopted_where_it_is_better_on_examples_that_chose_nothing(place):
    record = Personal.read(place.personal("C") / "personal.json")
    assert record.change.high < 0
    assert {float(share) for share in record.losses} == set(SHARES)
    assert record.losses[f"{record.share:g}"] == min(record.losses.values())
    assert record.parent == archive.archived_global(place, place.read_plan(), 1).adapter.digest
    validation = (place.site_data("C") / "validation.jsonl").read_text().splitlines()
    assert record.num_choosing + record.num_deciding == len(validation)
    if os.name != "nt":
        assert stat.S_IMODE(place.personal("C").stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in place.personal("C").iterdir()} == {0o600}


def test_its_losses_are_those_of_plain_peft(place, tiny_base):
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = place.read_plan()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, place.personal("C"))
    rows = split_validation("C", workspace_data(place, "C"))[0]
    measured = [answer_loss(model, tokenizer, plan, {"question": row.question, "answer": row.answer}) for row in rows]
    nll, num_tokens = np.sum(measured, axis=0)
    record = Personal.read(place.personal("C") / "personal.json")
    assert record.losses[f"{record.share:g}"] == pytest.approx(nll / num_tokens, abs=1e-4)


def test_a_mixture_is_the_best_adapter_of_the_plans_rank(round_workspace):
    plan = round_workspace.read_plan()
    rng = np.random.default_rng(0)

    def drawn():
        return plan_adapter(
            plan,
            {
                module: (
                    rng.normal(size=(plan.rank(module), shape[1])).astype(np.float32),
                    rng.normal(size=(shape[0], plan.rank(module))).astype(np.float32),
                )
                for module, shape in plan.modules.items()
            },
        )

    start, trained = drawn(), drawn()
    mixed = mix(plan, start, trained, 0.25)
    for module in plan.modules:
        first, last, found = (
            b.astype(float) @ a.astype(float) for a, b in (one.factors[module] for one in (start, trained, mixed))
        )
        u, s, vt = np.linalg.svd(0.75 * first + 0.25 * last)
        r = plan.rank(module)
        best = u[:, :r] * s[:r] @ vt[:r]
        assert np.abs(found - best).max() < 1e-5 * s[0]
    assert mix(plan, start, trained, 0.0) is start
    assert mix(plan, start, trained, 1.0) is trained


def test_all_of_a_training_at_a_lower_rank_leaves_the_other_components(round_workspace):
    plan = round_workspace.read_plan()
    start = archive.archived_global(round_workspace, plan, 1).adapter
    untrained = cut_to_rank(start, 1)
    assert untrained.max_rank < start.max_rank
    assert relate(start, mix(plan, start, untrained, 1.0)).relative_difference < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": PrivacyOptions(epsilon=8.0)},
        {"budget": 8.0},
        {"canaries": 4},
        {"options": TrainingOptions(eval_steps=2)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_it_does_not_take_are_refused(round_workspace, settings):
    with pytest.raises(UsageError, match=f"without these settings: .*{next(iter(settings))}"):
        steps.personalise(round_workspace, "C", settings=SiteSettings(**settings))


def test_a_training_survives_a_disk_that_is_full_when_it_is_written(personal_once, tiny_base, tmp_path, monkeypatch):
    place = Workspace(shutil.copytree(personal_once, tmp_path / "work"))
    argv = ["personalise", "--site", "C", "--max-steps", "40", "-C", str(place.root), "--base", str(tiny_base)]
    replace_folder = Workspace.replace_folder

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(Workspace, "replace_folder", full)
    assert main(argv) != 0
    monkeypatch.setattr(Workspace, "replace_folder", replace_folder)
    assert [path.name for path in (place.private / "checkpoints").glob("*C*")] == ["personal-C.npz"]
    assert main(argv) == 0
    assert list((place.private / "checkpoints").glob("*C*")) == []


def test_its_steps_have_a_log_of_their_own(place):
    logs = {path.name for path in (place.private / "training").glob("*C-002*")}
    assert logs == {"personal-C-002.jsonl"}


def test_the_global_adapter_is_kept_where_own_training_harms(place, tiny_base, capsys):
    path = place.site_data("C") / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "answer": "! " * 40}) + "\n" for row in rows))
    capsys.readouterr()
    argv = ["personalise", "--site", "C", "--max-steps", "40", "-C", str(place.root), "--base", str(tiny_base)]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["personal"] is None
    assert min(value["losses"].values()) == value["losses"][str(value["share"])]
    assert value["change"]["high"] >= 0 if value["share"] else value["change"] is None
    validation = (place.site_data("C") / "validation.jsonl").read_text().splitlines()
    assert value["num_choosing"] + value["num_deciding"] == len(validation)
    assert not place.personal("C").exists()
    assert "the private adapter that was here is kept in .fedmed/replaced" in err
    assert main(argv) == 0
    assert "Keep the global adapter" in capsys.readouterr().out


def test_chat_and_compare_take_it(place, tiny_base, capsys):
    plan = place.read_plan()
    digest = Personal.read(place.personal("C") / "personal.json").adapter
    assert all_adapters(place, plan)["personal-C"].digest == digest
    assert choose_adapter(place, plan, "personal-C", print).digest == digest
    assert archive.find_folder(place, plan, "personal-C").adapter.digest == digest
    alone = [part for site in "BC" for part in ("--alone", f"{site}={place.round(1) / site}")]
    argv = ["compare", "--no-answers", "-C", str(place.root), "--base", str(tiny_base), *alone]
    assert main(argv) == 0
    record = Comparison.read(place.reports / "compare.json")
    assert record.adapters["personal-C"] == digest
    assert "personal-C" in record.on_other_sites
    for site, name in (("B", "global"), ("C", "personal-C")):
        now, before = (record.scores[one][site].loss for one in (name, f"alone-{site}"))
        assert record.joined[site].mean == pytest.approx(now - before, abs=1e-9)
    out = capsys.readouterr().out
    assert "Private adapter minus the global one" in out
    assert "What a hospital uses now minus training alone" in out


def test_after_a_newer_round_it_is_named_as_old_and_takes_the_steps_of_both(place, tiny_base, capsys):
    assert main(["round", "-q", "-C", str(place.root), "--base", str(tiny_base)]) == 0
    capsys.readouterr()
    assert main(["compare", "--no-answers", "-C", str(place.root), "--base", str(tiny_base)]) == 0
    assert "personal-C was made from round 1: run 'fedmed personalise' for the newest round" in capsys.readouterr().err
    walked = []
    events = Events(step=lambda step: walked.append((step.step, step.max_steps)))
    steps.personalise(place, "C", base=BaseModel(str(tiny_base)), events=events)
    assert walked[-1] == (2 * place.read_plan().training.max_steps,) * 2


def test_it_does_not_leave(place, fails, tmp_path):
    words = "is a private adapter of site C, which does not leave the hospital"
    assert words in fails(7, "pack", place.personal("C"), "-C", place.root, "-o", tmp_path / "it.fedmed.tar")
    assert list(tmp_path.glob("*.tar")) == []
    shutil.rmtree(place.contribution("C"), ignore_errors=True)
    shutil.copytree(place.personal("C"), place.contribution("C"))
    assert words in fails(7, "aggregate", place.contribution("C"), "-C", place.root)
    assert isinstance(gate.read_from_anyone(place.personal("C")), PersonalFolder)


def test_it_needs_a_round(split_workspace, fails, tiny_base):
    message = fails(3, "personalise", "--site", "C", "-C", split_workspace.root, "--base", tiny_base)
    assert "there is no global adapter yet" in message


def test_it_needs_two_groups_of_validation_examples(round_workspace, fails, tiny_base):
    path = round_workspace.site_data("C") / "validation.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for count in (2, 3):  # the half that decides has one group
        path.write_text("".join(lines[:count]))
        message = fails(3, "personalise", "--site", "C", "-C", round_workspace.root, "--base", tiny_base)
        assert "site C: the half of the validation examples that decides has one group" in message
    path.write_text(lines[0])
    message = fails(3, "personalise", "--site", "C", "-C", round_workspace.root, "--base", tiny_base)
    assert "site C: 1 groups of validation examples are too few to choose with one half of them" in message
