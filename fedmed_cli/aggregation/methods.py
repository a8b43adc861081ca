"""How adapters are combined once their weights are known: svd, stack, factor-mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedmed_cli.adapters.adapter import Adapter, Factors, initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import squared_norm, truncate, weighted_product
from fedmed_cli.errors import CombineError
from fedmed_cli.records.aggregate import Truncation
from fedmed_cli.records.plan import Plan

Momentum = tuple[float, Adapter] | None
Combine = Callable[[Plan, Adapter, Sequence[Adapter], Sequence[float], Momentum], tuple[Adapter, Truncation]]


def svd(
    plan: Plan, parent: Adapter, adapters: Sequence[Adapter], coefficients: Sequence[float], momentum: Momentum = None
) -> tuple[Adapter, Truncation]:
    """The best adapter of the plan's rank: the truncated SVD of the exact weighted mean (Eckart-Young)."""
    initial = initial_factors(plan)
    factors: dict[str, Factors] = {}
    errors: dict[str, tuple[float, float]] = {}
    for module in plan.modules:
        product = weighted_product(module, parent, adapters, coefficients, momentum)
        factors[module], cut, total = truncate(product, plan.rank(module), plan.scale(module), initial[module][0])
        errors[module] = (cut, total)
    return plan_adapter(plan, factors), _truncation(errors)


def stack(
    plan: Plan, parent: Adapter, adapters: Sequence[Adapter], coefficients: Sequence[float], momentum: Momentum = None
) -> tuple[Adapter, Truncation]:
    """The exact weighted mean, by concatenation (FLoRA, arXiv 2409.05976), at the sum of the ranks.

    All modules have the rank of the largest sum, the others padded with zeros; no sum passes min(out, in). The
    scaling is 1. The products of all modules are in memory together.
    """
    products = {module: weighted_product(module, parent, adapters, coefficients, momentum) for module in plan.modules}
    rank = max(left.shape[1] for left, _ in products.values())
    factors = {}
    for module, (left, right) in products.items():
        spare = rank - left.shape[1]
        factors[module] = (
            np.pad(right, ((0, spare), (0, 0))).astype(np.float32),
            np.pad(left, ((0, 0), (0, spare))).astype(np.float32),
        )
    adapter = Adapter(rank, float(rank), tuple(sorted(plan.lora.targets)), plan.base.name, factors)
    return adapter, _truncation(dict.fromkeys(products, (0.0, 1.0)))


def factor_mean(
    plan: Plan, parent: Adapter, adapters: Sequence[Adapter], coefficients: Sequence[float], momentum: Momentum = None
) -> tuple[Adapter, Truncation]:
    """The weighted means of A and of B (FedIT, arXiv 2305.05644): biased, for comparison. Ranks must be equal."""
    for module in plan.modules:
        ranks = sorted({parent.rank(module), *(adapter.rank(module) for adapter in adapters)})
        if len(ranks) > 1:
            shown = ", ".join(map(str, ranks))
            raise CombineError(f"factor-mean needs adapters of one rank in each module: {module} has ranks {shown}")
    if momentum is not None:
        raise CombineError("factor-mean has no server momentum: it depends on the choice of factors")
    parent_share = 1 - math.fsum(coefficients)
    factors: dict[str, Factors] = {}
    errors: dict[str, tuple[float, float]] = {}
    for module in plan.modules:
        pairs = [parent.factors[module], *(adapter.factors[module] for adapter in adapters)]
        a, b = (
            np.sum(
                [c * pair[i].astype(np.float64) for c, pair in zip([parent_share, *coefficients], pairs, strict=True)],
                0,
            )
            for i in (0, 1)
        )
        factors[module] = (a.astype(np.float32), b.astype(np.float32))
        left, right = weighted_product(module, parent, adapters, coefficients, momentum)
        difference = (np.hstack([left, -plan.scale(module) * b]), np.vstack([right, a]))
        errors[module] = (squared_norm(difference), squared_norm((left, right)))
    return plan_adapter(plan, factors), _truncation(errors)


# The rows of `records/combining.METHODS`.
COMBINE: dict[str, Combine] = {"svd": svd, "stack": stack, "factor-mean": factor_mean}


def _truncation(errors: Mapping[str, tuple[float, float]]) -> Truncation:
    def relative(cut: float, total: float) -> float:
        return math.sqrt(cut / total) if total > 0 else 0.0

    overall = relative(math.fsum(cut for cut, _ in errors.values()), math.fsum(total for _, total in errors.values()))
    return Truncation(overall, {module: relative(cut, total) for module, (cut, total) in errors.items()})
