"""The last round combined with a coefficient for each site, projection and third of the depth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import truncate
from fedmed_cli.data import coordinator_examples, examples
from fedmed_cli.evaluation import measuring
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

DEPTHS = 3
BATCH, STEPS, RATE, PULL = 8, 40, 0.05, 0.01  # PULL: nats for a coefficient that is 1 off


class LastRound:
    """What a round was made of: the sites' adapters, their weights after clipping, and the global adapters before."""

    def __init__(self, place: Workspace, plan: Plan, number: int) -> None:
        record = archive.archived_global(place, plan, number).record
        self.server_lr = record.server_lr
        kept = {name: one for name, one in record.sites.items() if one.weight}
        self.names = list(kept)
        self.weights = [one.weight * one.clip_factor for one in kept.values()]
        self.ends = [archive.archived_contribution(place, plan, number, name).adapter for name in kept]
        self.parent = archive.archived_global(place, plan, number - 1).adapter
        self.before = archive.archived_global(place, plan, number - 2).adapter


def fit(place: Workspace, plan: Plan, lm: LanguageModel, number: int) -> Iterator[tuple[str, Adapter]]:
    """Adapters after fits of one factor for all, one for each site, and one for each site, projection and third."""
    last = LastRound(place, plan, number)
    rows = measuring.sample(coordinator_examples.half(place, "decide"), 200, "focus", examples.home_site)
    items = measuring.prepare(lm, plan, rows, "focus")
    for name, grouping in (("one", lambda s, m: 0), ("site", lambda s, m: s), ("all", _group)):
        yield name, _fit(plan, lm, last, items, grouping)


def _group(site: int, module: str) -> tuple[int, str, int]:
    layer = int(module.split(".layers.")[1].split(".")[0])
    return site, module.rsplit(".", 1)[1], layer * DEPTHS // 30


def _fit(plan: Plan, lm: LanguageModel, last: LastRound, items: measuring.EvaluationSet, grouping) -> Adapter:
    modules = sorted(plan.modules)
    keys = [[grouping(s, module) for s in range(len(last.ends))] for module in modules]
    groups = {key: i for i, key in enumerate(dict.fromkeys(key for row in keys for key in row))}
    index = np.array([[groups[key] for key in row] for row in keys])
    start = np.array([[last.server_lr * weight for weight in last.weights]] * len(modules))
    factor, moments = np.ones(len(groups)), np.zeros((2, len(groups)))

    def stacked(scale: np.ndarray) -> dict:
        """(A, B) of parent and sites side by side; B carries the coefficients."""
        made = {}
        for m, module in enumerate(modules):
            c = start[m] * scale[index[m]]
            parts = [last.parent, *last.ends]
            a = np.vstack([one.factors[module][0] for one in parts])
            b = np.hstack([x * one.factors[module][1] for x, one in zip([1 - c.sum(), *c], parts, strict=True)])
            made[module] = (a.astype(np.float32), b.astype(np.float32))
        return made

    rank = sum(one.r for one in (last.parent, *last.ends))
    alpha = plan.scale(modules[0]) * rank
    order = np.random.Generator(np.random.Philox(0))
    for step in range(1, STEPS + 1):
        lm.use(Adapter(rank, alpha, tuple(sorted(plan.lora.targets)), plan.base.name, stacked(factor)))
        batch = [items.encoded[i] for i in order.choice(len(items.encoded), BATCH, replace=False)]
        loss = nll_per_example(lm, batch).sum() / sum(one.num_supervised for one in batch)
        loss.backward()
        gradient = 2 * PULL * (factor - 1)
        grads_of_b = [parameter.grad.numpy() for parameter in lm.trainable_parameters()[1::2]]
        for m, grad in enumerate(grads_of_b):
            for s, end in enumerate(last.ends):
                at = last.parent.r + sum(one.r for one in last.ends[:s])
                change = float((grad[:, at : at + end.r] * end.factors[modules[m]][1]).sum())
                change -= float((grad[:, : last.parent.r] * last.parent.factors[modules[m]][1]).sum())
                gradient[index[m, s]] += start[m, s] * change
        moments[0] = 0.9 * moments[0] + 0.1 * gradient
        moments[1] = 0.99 * moments[1] + 0.01 * gradient**2
        factor -= RATE * (moments[0] / (1 - 0.9**step)) / (np.sqrt(moments[1] / (1 - 0.99**step)) + 1e-8)
        for parameter in lm.trainable_parameters():
            parameter.grad = None
        if step % 10 == 0:
            print(f"step {step}: {float(loss.detach()):.4f}, factors {np.round(factor, 2).tolist()}", flush=True)
    initial, found = initial_factors(plan), {}
    for module, (a, b) in stacked(factor).items():
        product = (plan.scale(module) * b.astype(np.float64), a.astype(np.float64))
        found[module] = truncate(product, plan.rank(module), plan.scale(module), initial[module][0])[0]
    return plan_adapter(plan, found)
