"""Training against a plain PEFT loop: the same gradients for every option, the same bytes after every break."""

import dataclasses
import json
import math
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import factories

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.aggregation.methods import svd
from fedmed_cli.cli.app import main
from fedmed_cli.data import examples, site_data
from fedmed_cli.errors import InputError
from fedmed_cli.events import Events
from fedmed_cli.federation import site
from fedmed_cli.intervals import summarize
from fedmed_cli.models import attention, bases, fused_ops, language_model, loss, prompts
from fedmed_cli.models.fast_path import ATTENTION, OPERATIONS, FastPath
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Training
from fedmed_cli.training import checkpoints, loop
from fedmed_cli.training.loop import learning_rate
from fedmed_cli.training.options import PrivacyOptions, SiteSettings, TrainingOptions
from fedmed_cli.training.passes import MAX_PADDING, forward_passes

SEED = 5


@pytest.fixture
def ready(split_workspace, tiny_base, float32):
    """A workspace with its plan, the tiny model on it in float32, and site A's encoded examples."""
    plan = split_workspace.read_plan()
    lm = language_model.load(bases.LocalBase(tiny_base, plan.base), "cpu")
    rows = examples.read_jsonl(split_workspace.site_data("A") / "train.jsonl")
    encoded = [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
    return split_workspace, plan, lm, encoded


def moved(adapter, seed=3):
    """The same adapter with B away from 0, so that A has a gradient too."""
    rng = np.random.default_rng(seed)
    factors = {name: (a, rng.normal(0, 0.05, b.shape).astype(np.float32)) for name, (a, b) in adapter.factors.items()}
    return dataclasses.replace(adapter, factors=factors)


def plain_gradients(tiny_base, plan, start, batch):
    """Gradients of the mean loss over a batch's answer tokens, by PEFT with a padding mask, one forward pass."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = peft.get_peft_model(model, factories.peft_config(plan.lora))
    parameters = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            module, _, factor = name.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            values = start.factors[module]["lora_A lora_B".split().index(factor)]
            parameter.data = torch.from_numpy(values.copy())
            parameters[module, factor] = parameter
    length = max(len(one.ids) for one in batch)
    ids, labels, mask = (torch.full((len(batch), length), fill) for fill in (0, -100, 0))
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, one.num_prompt : len(one.ids)] = torch.tensor(one.ids[one.num_prompt :])
        mask[row, : len(one.ids)] = 1
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    return [parameters[key].grad for key in sorted(parameters)]


def caught_gradients(monkeypatch):
    """A list that gets the gradients and the place of each step from now on, before they are clipped."""
    caught = []
    clip = torch.nn.utils.clip_grad_norm_

    def catch(parameters, norm):
        gradients = [parameter.grad.clone() for parameter in parameters]
        caught.append((gradients, [parameter.detach().clone() for parameter in parameters]))
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", catch)
    return caught


def first_gradients(monkeypatch, lm, plan, start, encoded, options, say=lambda message: None):
    """The gradients of fedmed's first step."""
    caught = caught_gradients(monkeypatch)
    loop.train(lm, plan, start, encoded, 1, options, seed=SEED, say=say)
    return caught[0][0]


VARIANTS = {
    "plain": ({}, {}),
    "one example a pass": ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6}, {}),
    "accumulated": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, {}),
    "token budget": ({"per_device_train_batch_size": 6, "max_batch_tokens": 200}, {}),
    "recomputed activations": ({"per_device_train_batch_size": 6, "gradient_checkpointing": True}, {}),
    "inner products of the MLP made again": ({"per_device_train_batch_size": 6}, {"SAVED_ROWS": {torch.float32: 10}}),
    "attention in blocks of 16": ({"per_device_train_batch_size": 6}, {"BLOCK": 16}),
    "probabilities made again": ({"per_device_train_batch_size": 6}, {"BLOCK": 16, "SAVED_LENGTH": 0}),
    "the model's own attention": ({"per_device_train_batch_size": 6}, {"without": (ATTENTION,)}),
    "none of fedmed's operations": ({"per_device_train_batch_size": 6}, {"without": tuple(OPERATIONS)}),
    "chunks of 7 labels": ({"per_device_train_batch_size": 6}, {"CHUNK": 7}),
    "logits of the model": ({"per_device_train_batch_size": 6}, {"plain_head": False}),
}


def test_components_that_aggregation_left_at_zero_learn_again(ready, monkeypatch):
    """Both factors at zero would have no gradient for good: A·x and B·y multiply each other's."""
    _, plan, lm, encoded = ready
    start = plan_adapter(plan, initial_factors(plan))
    one = {name: (a, np.pad(b[:, :1] + 0.01, ((0, 0), (0, len(a) - 1)))) for name, (a, b) in start.factors.items()}
    result, _ = svd(plan, start, [plan_adapter(plan, one)], [1.0])
    gradients = first_gradients(monkeypatch, lm, plan, result, encoded, TrainingOptions(per_device_train_batch_size=6))
    of_b = gradients[1::2]  # sorted by name: A before B
    for (_, b), gradient in zip(result.factors.values(), of_b, strict=True):
        assert b[:, 0].any()
        assert not b[:, 1:].any()
        assert gradient.shape == b.shape
        assert (gradient.abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.slow
def test_gradients_with_rank_and_alpha_patterns_are_those_of_peft(use_rslora, ready, tiny_base, monkeypatch):
    _, plan, lm, encoded = ready
    targets = ("q_proj", "v_proj", "gate_proj", "down_proj")
    lora = Lora(4, 8.0, targets, use_rslora, {"v_proj": 2, "down_proj": 6}, {"down_proj": 3.0, "q_proj": 5.0})
    plan = dataclasses.replace(plan, lora=lora)
    start = moved(plan_adapter(plan, initial_factors(plan)))
    batch = next(loop.batches(encoded, 6, SEED))
    expected = plain_gradients(tiny_base, plan, start, batch)
    found = first_gradients(monkeypatch, lm, plan, start, encoded, TrainingOptions(per_device_train_batch_size=6))
    assert len(found) == len(expected) == 2 * len(plan.modules)
    for one, two in zip(found, expected, strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow
def test_gradients_are_those_of_a_plain_peft_pass(name, ready, tiny_base, monkeypatch):
    _, plan, lm, encoded = ready
    given, changes = VARIANTS[name]
    if "CHUNK" in changes:
        monkeypatch.setattr(loss, "CHUNK", changes["CHUNK"])
    for place, constant in ((fused_ops, "SAVED_ROWS"), (attention, "BLOCK"), (attention, "SAVED_LENGTH")):
        if constant in changes:
            monkeypatch.setattr(place, constant, changes[constant])
    assert lm.fast_path.used == tuple(OPERATIONS)
    without = changes.get("without", ())
    used = tuple(name for name in lm.fast_path.used if name not in without)
    lm.fast_path = FastPath(used, dict.fromkeys(without, "a test says so"))
    assert lm.plain_head
    lm.plain_head = changes.get("plain_head", True)
    start = moved(archive.starting_adapter(ready[0], plan, 1))
    options = TrainingOptions(**({"per_device_train_batch_size": 6} | given))
    batch = next(loop.batches(encoded, 6, SEED))
    expected = plain_gradients(tiny_base, plan, start, batch)
    said = []
    found = first_gradients(monkeypatch, lm, plan, start, encoded, options, said.append)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)
    assert any("takes longer" in line for line in said) is (ATTENTION in without)


def test_fedprox_adds_the_pull_towards_the_start(ready, monkeypatch):
    """After one step the gradient differs by mu times the distance from the start, computed here by autograd."""
    workspace, plan, lm, encoded = ready
    start = moved(archive.starting_adapter(workspace, plan, 1))
    caught = caught_gradients(monkeypatch)
    pulled = training_with(plan, fedprox_mu=3.0)
    loop.train(lm, plan, start, encoded, 2, seed=SEED)
    loop.train(lm, pulled, start, encoded, 2, seed=SEED)
    # The first step starts at the anchor: no pull. The second is at the same place in both, as the first was equal.
    for ours, plain, place, origin in zip(caught[3][0], caught[1][0], caught[3][1], caught[0][1], strict=True):
        point = place.clone().requires_grad_(True)
        (1.5 * (point - origin).square().sum()).backward()
        assert torch.allclose(ours, plain + point.grad, rtol=1e-5, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(caught[0][0], caught[2][0], strict=True))


def training_with(plan, **changes):
    return dataclasses.replace(plan, training=dataclasses.replace(plan.training, **changes))


@pytest.mark.parametrize("kind", ["constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_learning_rates_of_a_round_are_those_of_transformers(kind, warmup):
    options = Training(learning_rate=0.5, lr_scheduler_type=kind.split("_")[0], warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = transformers.get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert learning_rate(options, 3, step, 20) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_decay_over_three_rounds_is_the_decay_of_one_long_training():
    spanned = Training(learning_rate=1.0, lr_scheduler_type="cosine", lr_scheduler_rounds=3)
    long = Training(learning_rate=1.0, lr_scheduler_type="cosine")
    rates = [learning_rate(spanned, number, step, 10) for number in (1, 2, 3) for step in range(10)]
    assert rates == pytest.approx([learning_rate(long, 1, step, 30) for step in range(30)])
    assert rates == sorted(rates, reverse=True)


def test_a_loss_that_is_not_finite_ends_the_training(ready):
    workspace, plan, lm, encoded = ready
    lm.model.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="the loss became nan in step 1"):
        loop.train(lm, plan, archive.starting_adapter(workspace, plan, 1), encoded, 2, seed=SEED)


def test_a_round_after_the_schedules_end_is_refused(ready):
    _, plan, lm, encoded = ready
    start = archive.starting_adapter(ready[0], plan, 1)
    plan = training_with(plan, lr_scheduler_type="cosine", lr_scheduler_rounds=2)
    with pytest.raises(InputError, match="ends with round 2"):
        loop.train(lm, plan, start, encoded, 1, seed=SEED, round_number=3)


def test_options_that_came_later_change_no_older_plans_digest(ready):
    plan = ready[1]
    assert training_with(plan, fedprox_mu=0.0, lr_scheduler_rounds=1).digest == plan.digest
    assert training_with(plan, fedprox_mu=0.1).digest != plan.digest
    assert training_with(plan, lr_scheduler_rounds=2).digest != plan.digest


@pytest.mark.parametrize("batch_size", [2, 4, 8, 16])
def test_under_5_percent_of_positions_are_padding(batch_size):
    """Lengths as skewed as MedQuAD's: log-normal around 200 tokens."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 0.45, 2000).astype(int), 40, 1024)
    encoded = [prompts.Encoded((1,) * int(n), 20, False) for n in lengths]
    options = TrainingOptions(per_device_train_batch_size=batch_size)
    order = loop.batches(encoded, batch_size, SEED)
    padded = real = 0
    seen = []
    for _ in range(math.ceil(len(encoded) / batch_size)):
        for part in forward_passes(next(order), options, MAX_PADDING):
            padded += len(part) * max(len(one.ids) for one in part)
            real += sum(len(one.ids) for one in part)
            seen += [len(one.ids) for one in part]
    assert sorted(seen) == sorted(lengths.tolist())
    assert 1 - real / padded < 0.05


def test_an_example_longer_than_the_token_budget_is_said(ready):
    said = []
    run_site(ready, said=said, max_steps=1, max_batch_tokens=16)
    total = len(ready[3])
    assert (
        f"site A: {total} of {total} examples are longer than --max-batch-tokens 16; each is a forward pass of its own"
        in said
    )


def test_what_is_skipped_cut_or_not_measured_is_said(ready):
    rows = [{"question": "Why?", "answer": f"For {n}."} for n in range(3)]
    rows += [{"question": "Why? " * 1000, "answer": "So."}, {"question": "And?", "answer": "So it is. " * 1000}]
    folder = ready[0].site_data("A")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").unlink()
    said = []
    record = run_site(ready, said=said, max_steps=1, per_device_train_batch_size=1)
    assert said[:3] == [
        "site A: 1 of 5 examples skipped: the question alone fills max_length",
        "site A: 1 of 5 answers cut at max_length 256",
        "site A: no validation examples, so no loss is measured",
    ]
    assert (record.num_examples, record.num_skipped, record.num_truncated) == (4, 1, 1)
    assert record.validation_before is record.validation_after is None


def test_forward_passes_hold_each_example_once_and_keep_the_bounds():
    rng = np.random.default_rng(1)
    batch = [prompts.Encoded((1,) * int(n), 5, False) for n in rng.integers(10, 300, 23)]
    options = TrainingOptions(per_device_train_batch_size=5, gradient_accumulation_steps=5, max_batch_tokens=400)
    parts = list(forward_passes(batch, options, 1.0))
    assert (
        len(list(forward_passes(batch, TrainingOptions(per_device_train_batch_size=5), 1.0))) == 5
    )  # of 23: as many as fit
    assert sorted(len(one.ids) for part in parts for one in part) == sorted(len(one.ids) for one in batch)
    assert all(len(part) <= 5 for part in parts)
    assert all(len(part) == 1 or len(part) * max(len(one.ids) for one in part) <= 400 for part in parts)
    assert parts == list(forward_passes(batch, dataclasses.replace(options, max_batch_tokens=None), 1.0, 400))
    assert parts == list(forward_passes(batch, options, 1.0, 40))  # what a person asks for goes before


# --- breaking off and going on ----------------------------------------------------------------------


class Killed(BaseException):
    pass


def run_site(ready, name="A", until=None, said=None, **changes):
    """`site.train_local` in the workspace; with `until` it breaks off after that step."""
    workspace, plan, lm, _ = ready

    def stop(step):
        if until is not None and step.step == until:
            raise Killed

    events = Events(say=said.append if said is not None else lambda message: None, step=stop)
    given = {"max_steps": 8, "max_eval_samples": 8, "save_steps": 1} | changes
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    options = TrainingOptions(**{name: value for name, value in given.items() if name in names})
    settings = SiteSettings(options, **{name: value for name, value in given.items() if name not in names})
    parent = archive.starting_adapter(workspace, plan, 1)
    return site.train_local(
        workspace, plan, lm, name, site_data.workspace_data(workspace, name), parent, 1, settings, events=events
    ).record


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [1, 3])
def test_a_training_that_breaks_off_at_any_step_ends_with_the_same_bytes(ready, save_steps):
    workspace = ready[0]
    whole = run_site(ready)
    folder = workspace.private / "checkpoints"
    assert list(folder.iterdir()) == []
    for until in range(1, 9):
        with pytest.raises(Killed):
            run_site(ready, until=until, save_steps=save_steps)
        said = []
        resumed = run_site(ready, said=said, save_steps=save_steps)
        saved = (until - 1) // save_steps * save_steps
        found = [message for message in said if "resuming" in message]
        assert found == ([f"site A: resuming from the checkpoint at step {saved} of 8"] if saved else [])
        assert (resumed.adapter, resumed.losses) == (whole.adapter, whole.losses)
        assert (resumed.num_trained_tokens, resumed.update_norm) == (whole.num_trained_tokens, whole.update_norm)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_of_other_options_is_kept_aside_and_said(ready):
    whole = run_site(ready, per_device_train_batch_size=3)
    with pytest.raises(Killed):
        run_site(ready, until=5)
    said = []
    other = run_site(ready, said=said, per_device_train_batch_size=3)
    assert [message for message in said if "does not fit (another options); it is kept in" in message]
    assert other.adapter == whole.adapter
    assert list((ready[0].private / "replaced").glob("*.npz*"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_kept_aside_and_said(ready):
    whole = run_site(ready)
    with pytest.raises(Killed):
        run_site(ready, until=5)
    (path,) = (ready[0].private / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    said = []
    assert run_site(ready, said=said).adapter == whole.adapter
    assert [message for message in said if "cannot be read" in message]


@pytest.mark.slow
def test_three_runs_give_the_same_bytes_and_no_training_depends_on_one_before(ready, tiny_base):
    alone = run_site(ready, "B")
    run_site(ready, "A", gradient_checkpointing=True)
    after = run_site(ready, "B")
    assert alone.adapter == after.adapter
    assert alone.losses == after.losses
    fresh = language_model.load(bases.LocalBase(tiny_base, ready[1].base), "cpu")
    assert run_site((ready[0], ready[1], fresh, None), "B").adapter == alone.adapter


# --- choosing the step ------------------------------------------------------------------------------


def test_validation_examples_that_do_not_fit_are_said(ready):
    workspace, plan, lm, _ = ready
    data = site_data.workspace_data(workspace, "A")
    validation = [dataclasses.replace(data.validation[0], question="flu " * plan.training.max_length), *data.validation]
    said = []
    start = plan_adapter(plan, initial_factors(plan))
    task = site.Task(workspace, plan, lm, "A", start, 1, SiteSettings(), Events(say=said.append))
    prepared = site.prepare(task, dataclasses.replace(data, validation=validation))
    assert len(prepared.reporting.examples) == len(data.validation)
    expected = (
        f"skipped 1 of {len(validation)} validation examples to measure with: the question alone fills max_length"
    )
    assert f"site A: {expected}" in said


@pytest.mark.slow
def test_the_best_step_is_kept_by_examples_that_are_not_reported_on(ready):
    workspace, plan, lm, _ = ready
    data = site_data.workspace_data(workspace, "A")
    choosing, reporting = site.split_validation("A", data)
    assert len(choosing) + len(reporting) == len(data.validation)
    assert not {row.text_digest for row in choosing} & {row.text_digest for row in reporting}

    # With a wild learning rate the loss rises at the end, so that the last step is not the best one.
    wild = training_with(plan, learning_rate=0.3)
    said = []
    record = run_site((workspace, wild, lm, None), said=said, eval_steps=2, max_steps=8)
    items = site.measuring.prepare(lm, wild, choosing[:8], None)
    losses = {}
    for step in (2, 4, 6, 8):
        caught = {}

        def stop(state, step=step, caught=caught):
            if state.step == step:
                caught["factors"] = lm.read_factors()

        start = archive.starting_adapter(workspace, wild, 1)
        encoded = [prompts.encode(row, wild.prompt, lm.tokenizer, wild.training.max_length) for row in data.train]
        seed = loop.order_seed(wild, "A", 1)
        loop.train(lm, wild, start, encoded, 8, seed=seed, progress=stop)
        # `progress` runs after the step's update
        adapter = plan_adapter(wild, caught["factors"])
        losses[step] = (summarize(site.measuring.measure(lm, adapter, items.encoded), items.groups).mean, adapter)
    best = min(losses, key=lambda step: losses[step][0])
    assert record.kept_step == best
    assert record.adapter == losses[best][1].digest
    assert f"site A: keeps the adapter of step {best} of 8, the best on other examples" in said


@pytest.mark.slow
def test_early_stopping_stops_and_resumes_to_the_same_bytes(ready):
    workspace, plan, lm, _ = ready
    wild = (workspace, training_with(plan, learning_rate=1.0), lm, None)
    said = []
    options = {"eval_steps": 1, "early_stopping_patience": 2, "max_steps": 30}
    record = run_site(wild, said=said, **options)
    assert len(record.losses) < 30
    assert len(record.losses) == record.kept_step + 2
    assert any("stopped early" in message for message in said)
    with pytest.raises(Killed):
        run_site(wild, until=len(record.losses), **options)
    again = []
    assert run_site(wild, said=again, **options).adapter == record.adapter
    assert any("resuming from the checkpoint" in message for message in again)


# --- 4 bits -----------------------------------------------------------------------------------------


@pytest.fixture
def four_bit(ready, tiny_base):
    lm = language_model.load(bases.LocalBase(tiny_base, ready[1].base), "cpu", load_in_4bit=True)
    return ready[0], ready[1], lm, ready[3]


@pytest.mark.slow
def test_4_bit_layers_stay_differentiable_on_every_cpu(ready, tiny_base, monkeypatch):
    """bitsandbytes repacks layers whose flag is set at the first forward without gradients, and loses the gradient."""
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    lm = language_model.load(bases.LocalBase(tiny_base, ready[1].base), "cpu", load_in_4bit=True)
    layers = [module for module in lm.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    assert bitsandbytes.nn.Linear4bit(4, 4).support_avx512bf16_for_cpu
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.slow
def test_4_bit_gradients_after_measuring_are_those_before(four_bit, monkeypatch):
    workspace, plan, lm, encoded = four_bit
    start = moved(archive.starting_adapter(workspace, plan, 1))
    before = first_gradients(monkeypatch, lm, plan, start, encoded, TrainingOptions())
    site.measuring.measure(lm, start, encoded[:4])
    after = first_gradients(monkeypatch, lm, plan, start, encoded, TrainingOptions())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in before)


@pytest.mark.slow
def test_a_site_trains_in_4_bits_and_its_record_says_so(split_workspace, tiny_base):
    argv = ["train-local", "-q", "-C", str(split_workspace.root), "--site", "A", "--base", str(tiny_base)]
    assert main([*argv, "--load-in-4bit", "--max-steps", "2"]) == 0
    record = json.loads((split_workspace.contribution("A") / "contribution.json").read_text())
    assert record["run"]["quantization"] == "nf4"


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_epochs_and_live_metrics(split_workspace, tiny_base):
    argv = ["train-local", "-q", "-C", str(split_workspace.root), "--site", "A", "--base", str(tiny_base)]
    argv += ["--num-train-epochs", "0.5", "--per-device-train-batch-size", "3", "--logging-steps", "4"]
    assert main(argv) == 0
    record = json.loads((split_workspace.contribution("A") / "contribution.json").read_text())
    steps = math.ceil(0.5 * math.ceil(record["num_examples"] / 3))
    assert record["max_steps"] == steps == len(record["losses"])
    lines = (split_workspace.private / "training/A-001.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["step"] for event in events] == [*range(4, steps, 4), steps]
    assert events[0]["loss"] == pytest.approx(np.mean(record["losses"][:4]), abs=1e-5)
    for event in events:
        assert {"learning_rate", "grad_norm", "tokens_per_second", "peak_memory_bytes"} <= set(event)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--max-steps", "3", "--num-train-epochs", "1"], "are alternatives"),
        (["--num-train-epochs", "0"], "expected a number above 0"),
        (["--early-stopping-patience", "2"], "goes with --eval-steps"),
        (["--report-to", "wandb"], "expected one of tensorboard"),
    ],
)
def test_options_that_contradict_each_other(argv, text, split_workspace, tiny_base, fails):
    found = fails(2, "train-local", "-C", split_workspace.root, "--site", "A", "--base", tiny_base, *argv)
    assert text in found


def test_out_of_memory_names_the_options_that_help(split_workspace, tiny_base, fails, monkeypatch):
    def full(*args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(loop, "nll_per_example", full)
    assert "out of memory" in fails(
        5, "train-local", "-C", split_workspace.root, "--site", "A", "--base", tiny_base, "--max-eval-samples", "2"
    )


def test_tensorboard_is_an_extra(split_workspace, tiny_base, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    argv = ["train-local", "-C", split_workspace.root, "--site", "A", "--base", tiny_base]
    found = fails(5, *argv, "--report-to", "tensorboard", "--max-eval-samples", "2")
    assert "needs tensorboard" in found
    assert not split_workspace.contribution("A").exists()


def test_a_checkpoint_is_due_by_steps_or_by_the_minute(split_workspace, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    make = checkpoints.Checkpoints
    timed = make(split_workspace, split_workspace.private / "x.npz", {}, print, None, _saved=0.0)
    assert not timed.due(1)
    now[0] = 60.0
    assert timed.due(2)
    by_steps = make(split_workspace, split_workspace.private / "x.npz", {}, print, 4, _saved=0.0)
    assert [step for step in range(1, 9) if by_steps.due(step)] == [4, 8]


def test_more_steps_than_a_record_holds_are_refused_before_they_are_taken(split_workspace):
    plan = split_workspace.read_plan()
    assert SiteSettings(max_steps=60_000).steps(plan, 100) == 60_000
    for settings in (SiteSettings(max_steps=60_001), SiteSettings(num_train_epochs=10_000)):
        with pytest.raises(InputError, match="steps in a round are more than a record can hold"):
            settings.steps(plan, 100)
    assert SiteSettings(max_steps=60_001, privacy=PrivacyOptions(epsilon=1.0)).steps(plan, 100) == 60_001
