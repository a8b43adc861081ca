"""What a federation's last round was made of, and coefficients for it that are fitted instead of one for each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.optimize

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import truncate, weighted_product
from fedmed_cli.evaluation import measuring
from fedmed_cli.evaluation.measuring import EvaluationSet
from fedmed_cli.intervals import paired_interval
from fedmed_cli.models.fast_path import fast_path
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

PULL = 0.01  # nats that coefficients cost where each is 0 or twice the round's
SEARCH_STEPS = 8


class LastRound:
    """A round's contributions: the sites' adapters, their weights after clipping, and the global adapters before."""

    def __init__(self, place: Workspace, plan: Plan, number: int) -> None:
        record = archive.archived_global(place, plan, number).record
        self.server_lr = record.server_lr
        kept = {name: one for name, one in record.sites.items() if one.weight}
        self.names = list(kept)
        self.weights = [one.weight * one.clip_factor for one in kept.values()]
        self.ends = [archive.archived_contribution(place, plan, number, name).adapter for name in kept]
        self.parent = archive.archived_global(place, plan, number - 1).adapter
        self.before = archive.archived_global(place, plan, number - 2).adapter


class Fit:
    """A coefficient for each site, projection (q, v) and third of the layers, instead of one for each site.

    Half of the groups of `items` are fitted on, by gradient and pulled towards the round's own coefficients. What comes
    out is taken only where it does better on the other half by a paired interval.
    """

    def __init__(self, lm: LanguageModel, plan: Plan, updates: LastRound, items: EvaluationSet) -> None:
        self.lm, self.plan, self.updates, self.items = lm, plan, updates, items
        self.modules = sorted(plan.modules)
        num_layers = 1 + max(map(_layer, self.modules))
        kinds = [(module.rpartition(".")[2], 3 * _layer(module) // num_layers) for module in self.modules]
        self.kinds = sorted(set(kinds))
        self.kind_of_module = [self.kinds.index(kind) for kind in kinds]
        self.coefficients = np.tile(updates.server_lr * np.array(updates.weights), (len(self.kinds), 1))
        names = sorted(set(items.groups))
        self.parts = [[i for i, group in enumerate(items.groups) if names.index(group) % 2 == side] for side in (0, 1)]

    def run(self) -> Adapter:
        start = np.ones(self.coefficients.size)
        found = scipy.optimize.minimize(
            self.value, start, jac=True, method="L-BFGS-B", options={"maxiter": SEARCH_STEPS}
        )
        shares = found.x.reshape(self.coefficients.shape)
        for kind, row in zip(self.kinds, shares, strict=True):
            print(f"{kind}: the sites' coefficients times {row.round(2).tolist()}")
        before, after = self.combine(self.coefficients), self.combine(self.coefficients * shares)
        checking = [self.items.encoded[i] for i in self.parts[1]]
        groups = [self.items.groups[i] for i in self.parts[1]]
        losses = [measuring.measure(self.lm, adapter, checking) for adapter in (after, before)]
        change = paired_interval(*losses, groups)
        print(f"on the other part: {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]", flush=True)
        return after if change.high < 0 else before

    def value(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """What is minimised, and its gradient, at these shares of the coefficients."""
        shares = flat.reshape(self.coefficients.shape)
        fitting = [self.items.encoded[i] for i in self.parts[0]]
        loss, slopes = self.loss_and_slopes((self.coefficients * shares)[self.kind_of_module], fitting)
        gradient = np.zeros_like(shares)
        np.add.at(gradient, self.kind_of_module, slopes)
        pull = PULL * np.mean((shares - 1) ** 2)
        print(f"loss {loss:.4f}, pull {pull:.4f}", flush=True)
        return loss + pull, (gradient * self.coefficients + 2 * PULL * (shares - 1) / shares.size).ravel()

    def loss_and_slopes(self, coefficients: np.ndarray, encoded: Sequence[Encoded]) -> tuple[float, np.ndarray]:
        """The mean loss of the sum of all updates, nothing cut, and its derivatives by the coefficients.

        `coefficients` and derivatives are (modules, sites).
        """
        adapters, r = [self.updates.parent, *self.updates.ends], self.plan.lora.r
        factors = {}
        for module, row in zip(self.modules, coefficients, strict=True):
            pairs = [adapter.factors[module] for adapter in adapters]
            b = np.hstack([share * b for share, (_, b) in zip([1 - row.sum(), *row], pairs, strict=True)])
            factors[module] = (np.vstack([a for a, _ in pairs]), b.astype(np.float32))
        count = len(adapters)
        self.lm.use(replace(self.updates.parent, r=r * count, alpha=self.plan.lora.alpha * count, factors=factors))
        num_tokens, total = sum(one.num_supervised for one in encoded), 0.0
        with fast_path(self.lm):
            for one in encoded:
                loss = nll_per_example(self.lm, [one]).sum() / num_tokens
                loss.backward()
                total += float(loss.detach())
        parameters = self.lm.trainable_parameters()  # sorted by name: A and B of each module in turn
        slopes = []
        for module, parameter in zip(self.modules, parameters[1::2], strict=True):
            blocks = np.split(parameter.grad.numpy(), count, axis=1)
            parent, *sites = [
                (block * adapter.factors[module][1]).sum() for block, adapter in zip(blocks, adapters, strict=True)
            ]
            slopes.append([site - parent for site in sites])
        for parameter in parameters:
            parameter.grad = None
        return total, np.array(slopes)

    def combine(self, coefficients: np.ndarray) -> Adapter:
        """The updates at the plan's rank, with coefficients of (kinds, sites)."""
        initial, factors = initial_factors(self.plan), {}
        for module, row in zip(self.modules, coefficients[self.kind_of_module], strict=True):
            product = weighted_product(module, self.updates.parent, self.updates.ends, row.tolist())
            rank, scale = self.plan.rank(module), self.plan.scale(module)
            factors[module], _, _ = truncate(product, rank, scale, initial[module][0])
        return plan_adapter(self.plan, factors)


def _layer(module: str) -> int:
    return int(next(part for part in module.split(".") if part.isdigit()))
