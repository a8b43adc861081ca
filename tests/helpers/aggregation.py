"""Adapters, contributions and an evaluator with a known loss, for tests of aggregation without files."""

import math

import numpy as np

from fedmed_cli.adapters.adapter import Adapter, plan_adapter
from fedmed_cli.aggregation.state import AcceptedContribution, Evaluator
from fedmed_cli.intervals import Losses
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training
from fedmed_cli.records.scores import Scores

NUM_EXAMPLES = 60


def make_plan(r=4, sites=("A", "B", "C"), **lora):
    linear = {"layers.*.q_proj": (12, 16, 2), "layers.*.v_proj": (8, 16, 2)}
    base = Base("tiny", "", "0" * 64, 1000, linear)
    return Plan(base, Lora(r=r, alpha=2.0 * r, **lora), Prompt(), Training(), Sites(sites, 2))


def dense(adapter: Adapter, module, first=None):
    """s·B·A in float64; with `first` only the first components. The scaling is worked out here, from the config."""
    a, b = (part.astype(np.float64) for part in adapter.factors[module])
    named = [key for key in adapter.config.get("alpha_pattern", {}) if f".{module}".endswith(f".{key}")]
    alpha = adapter.config["alpha_pattern"][named[0]] if named else adapter.config["lora_alpha"]
    scaling = alpha / (math.sqrt(len(a)) if adapter.config["use_rslora"] else len(a))
    return scaling * b[:, :first] @ a[:first]


def contribution(plan, site, adapter, num_tokens=1000, before=3.0, after=2.5):
    record = Contribution(
        site=site, round=1, plan=plan.digest, sites=plan.sites.digest, base_fingerprint="0" * 64, parent="1" * 64,
        adapter=adapter.digest, adapter_bytes=10, base_bytes=1000, num_examples=10, num_tokens=num_tokens,
        num_truncated=0, num_skipped=0, max_steps=1, num_trained_examples=2, num_trained_tokens=20,
        per_device_train_batch_size=2, losses=(1.0,), validation_before=Loss(before, 0.1, 10, 10, 100),
        validation_after=Loss(after, 0.1, 10, 10, 100), update_norm=1.0, files={},
    )  # fmt: skip
    return AcceptedContribution(adapter, record, "2" * 64)


def update(plan, parent, seed, size=1.0, direction=0):
    """An adapter that moved mostly along one shared direction, and a little along its own."""
    rng, own = np.random.default_rng(direction), np.random.default_rng(1000 + seed)
    factors = {}
    for module, (a, b) in parent.factors.items():
        shared = rng.normal(0, 0.1, b.shape)
        factors[module] = (a, (b + size * (shared + own.normal(0, 0.05, b.shape))).astype(np.float32))
    return plan_adapter(plan, factors)


def evaluator(plan, parent, seed=0, curve=8.0):
    """Loss of an adapter: 3 + noise_e + curve·‖W − target‖² + a small own slope of each example."""
    target = {m: dense(update(plan, parent, 0), m) for m in plan.modules}
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 0.5, NUM_EXAMPLES)
    slopes = {m: rng.normal(0, 0.05, (NUM_EXAMPLES, *target[m].shape)) for m in plan.modules}
    tokens = rng.integers(20, 60, NUM_EXAMPLES)

    def losses(adapter):
        nll = 3 + offset
        for module in plan.modules:
            step = dense(adapter, module) - target[module]
            nll = nll + curve * np.sum(step**2) / 10 + np.tensordot(slopes[module], step, 2)
        return Losses(nll * tokens, tokens)

    groups = [f"g{i // 2}" for i in range(NUM_EXAMPLES)]
    return Evaluator("e" * 64, groups, [""] * NUM_EXAMPLES, losses)


def score_file(plan, parent, site, gains):
    return Scores(site, 1, plan.digest, "0" * 64, parent.digest, "3" * 64, 50, 40, gains)
