"""DP-SGD: gradients by unit are exact, each is bounded, and draws and noise are what the accountant takes them for."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.data import examples
from fedmed_cli.models import bases, language_model, prompts
from fedmed_cli.models.fast_path import ATTENTION, OPERATIONS, FastPath
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.records.lora import Lora
from fedmed_cli.training import private_steps
from fedmed_cli.training.options import TrainingOptions
from fedmed_cli.training.private_steps import PrivateSteps, clipped_sum

TARGETS = ("q_proj", "v_proj", "gate_proj", "down_proj")
PATTERNS = Lora(4, 8.0, TARGETS, True, {"v_proj": 2, "down_proj": 6}, {"down_proj": 3.0, "q_proj": 5.0})
OPTIONS = TrainingOptions(per_device_train_batch_size=3)


@pytest.fixture
def ready(split_once, tiny_base, float32):
    from fedmed_cli.workspace import Workspace

    workspace = Workspace(split_once)
    plan = workspace.read_plan()
    lm = language_model.load(bases.LocalBase(tiny_base, plan.base), "cpu")
    rows = examples.read_jsonl(workspace.site_data("A") / "train.jsonl")[:24]
    encoded = [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
    return plan, lm, encoded


def put_on(plan, lm):
    """An adapter with B away from 0 on the model; returns its parameters."""
    rng = np.random.default_rng(3)
    factors = {
        name: (a, rng.normal(0, 0.05, b.shape).astype(np.float32)) for name, (a, b) in initial_factors(plan).items()
    }
    lm.use(plan_adapter(plan, factors))
    return lm.trainable_parameters()


def unit_gradient(lm, parameters, unit):
    """The gradient of the mean loss over a unit's answer tokens, by autograd, one example at a time."""
    labels = sum(example.num_supervised for example in unit)
    for example in unit:
        (nll_per_example(lm, [example]).sum() / labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return gradient


def as_units(encoded, size):
    return [tuple(encoded[start : start + size]) for start in range(0, len(encoded), size)]


CASES = {
    "packed": ({}, {}),
    "padded": ({"without": (ATTENTION,)}, {}),
    "none of fedmed's operations": ({"without": tuple(OPERATIONS)}, {}),
    "patterns and rsLoRA": ({"lora": PATTERNS}, {}),
    "several examples a unit": ({"size": 3}, {}),
    "recomputed activations": ({}, {"gradient_checkpointing": True}),
    "token budget": ({"size": 2}, {"max_batch_tokens": 200}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.slow
def test_clipped_sums_are_those_of_a_loop_over_single_units(name, share, ready, monkeypatch):
    """`share` of the units' median norm is the clip norm; None clips nothing."""
    plan, lm, encoded = ready
    case, options = CASES[name]
    without = case.get("without", ())
    lm.fast_path = FastPath(tuple(n for n in OPERATIONS if n not in without), dict.fromkeys(without, "a test says so"))
    plan = dataclasses.replace(plan, lora=case.get("lora", plan.lora))
    parameters = put_on(plan, lm)
    units = as_units(encoded[:12], case.get("size", 1))
    monkeypatch.setattr(private_steps, "UNITS_AT_ONCE", 3)  # fewer than there are in each case
    alone = [unit_gradient(lm, parameters, unit) for unit in units]
    norms = torch.stack([gradient.norm() for gradient in alone])
    clip = float(norms.median()) * share if share else 1e9
    expected = sum(gradient * min(1.0, clip / float(norm)) for gradient, norm in zip(alone, norms, strict=True))
    if options.get("gradient_checkpointing"):
        lm.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.model.train()
    try:
        found, loss = clipped_sum(lm, parameters, units, clip, dataclasses.replace(OPTIONS, **options))
    finally:
        lm.causal.gradient_checkpointing_disable()
        lm.model.eval()
    assert (found - expected).norm() <= 1e-6 * norms.clamp(max=clip).sum()
    with torch.no_grad():
        sums = [float(sum(nll_per_example(lm, [example]).sum() for example in unit)) for unit in units]
    losses = [total / sum(example.num_supervised for example in unit) for total, unit in zip(sums, units, strict=True)]
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert all(parameter.grad is None for parameter in parameters)


def test_one_unit_changes_the_sum_by_no_more_than_the_clip_norm(ready):
    """Also one that is unlike all others, and whatever else is in the step."""
    plan, lm, encoded = ready
    parameters = put_on(plan, lm)
    canary = (prompts.Encoded(tuple([5, 9] * 60), 2, False),)
    units = as_units(encoded[:7], 1)
    clip = 1e-3
    with_it, _ = clipped_sum(lm, parameters, [*units, canary], clip, OPTIONS)
    without, _ = clipped_sum(lm, parameters, units, clip, OPTIONS)
    difference = float((with_it - without).norm())
    assert clip * 0.99 <= difference <= clip * (1 + 1e-5)  # its gradient is longer than the norm: it is cut to it


def test_the_steps_gradient_is_the_noised_sum_over_the_expected_number_of_units(ready, monkeypatch):
    plan, lm, encoded = ready
    parameters = put_on(plan, lm)
    private = PrivateSteps(tuple(as_units(encoded, 1)), 0.25, 2.0, 0.01)
    drawn = list(private.units[:5])
    expected, _ = clipped_sum(lm, parameters, drawn, 0.01, OPTIONS)
    monkeypatch.setattr(private_steps, "_normal", lambda size: np.full(size, 3.0))
    private.add_gradients(lm, parameters, drawn, OPTIONS)
    found = torch.cat([parameter.grad.flatten() for parameter in parameters])
    assert torch.allclose(found, (expected + 3.0 * 2.0 * 0.01) / 6, rtol=1e-5, atol=1e-9)


def test_a_step_that_draws_nobody_is_noise_alone(ready):
    plan, lm, encoded = ready
    parameters = put_on(plan, lm)
    private = PrivateSteps(tuple(as_units(encoded, 1)), 0.25, 2.0, 0.01)
    assert private.add_gradients(lm, parameters, [], OPTIONS) == 0.0
    found = torch.cat([parameter.grad.flatten() for parameter in parameters])
    assert 0.5 < float(found.std()) / (2.0 * 0.01 / 6) < 2


def test_units_are_drawn_independently_at_the_rate():
    units = tuple((number,) for number in range(2000))
    sizes = np.array([len(PrivateSteps(units, 0.05, 1.0, 1.0).draw()) for _ in range(400)])
    # Binomial: mean 100, variance 95. Bounds that a sound generator misses once in 10^9 runs.
    assert abs(sizes.mean() - 100) < 6.2 * math.sqrt(95 / 400)
    assert 0.55 < sizes.var() / 95 < 1.6


def test_noise_is_standard_normal_and_never_the_same():
    noise = private_steps._normal(200_000)
    assert stats.kstest(noise, "norm").pvalue > 1e-9
    assert not np.isin(private_steps._normal(1000), noise).any()
