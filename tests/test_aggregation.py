"""Aggregation in factor space against a dense reference."""

import numpy as np
import pytest

from fedmed_cli.adapters import initial_factors, plan_adapter
from fedmed_cli.aggregation.factors import gram_of_innovations
from fedmed_cli.aggregation.rules import factor_mean, stack, svd
from fedmed_cli.records import Base, Lora, Plan, Prompt, Sites, Training


@pytest.fixture
def plan():
    base = Base("tiny", "", "0" * 64, 1000, {"layers.*.q_proj": (12, 16, 2), "layers.*.v_proj": (8, 16, 2)})
    return Plan(base, Lora(r=4, alpha=8.0), Prompt(), Training(), Sites(("A", "B", "C"), 2))


def random_adapter(plan, seed):
    rng = np.random.default_rng(seed)
    factors = {
        module: (a, rng.normal(0, 0.1, b.shape).astype(np.float32)) for module, (a, b) in initial_factors(plan).items()
    }
    factors = {m: (a + rng.normal(0, 0.1, a.shape).astype(np.float32), b) for m, (a, b) in factors.items()}
    return plan_adapter(plan, factors)


def dense(adapter, module):
    a, b = (x.astype(np.float64) for x in adapter.factors[module])
    return adapter.scaling * b @ a


def test_svd_is_the_dense_optimum_and_predicts_its_error(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, seed) for seed in (1, 2, 3)]
    weights = [0.5, 0.3, 0.2]
    result, truncation = svd(plan, parent, sites, weights)
    for module in plan.modules:
        mean = sum(w * dense(s, module) for w, s in zip(weights, sites, strict=True))
        u, s, vt = np.linalg.svd(mean)
        best = (u[:, :4] * s[:4]) @ vt[:4]
        found = dense(result, module)
        assert np.linalg.norm(found - best) <= 1e-5 * np.linalg.norm(best)
        measured = np.linalg.norm(found - mean) / np.linalg.norm(mean)
        assert truncation.modules[module] == pytest.approx(measured, abs=1e-5)


def test_stack_is_exact(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, seed) for seed in (1, 2)]
    result, _ = stack(plan, parent, sites, [0.25, 0.75])
    for module in plan.modules:
        mean = 0.25 * dense(sites[0], module) + 0.75 * dense(sites[1], module)
        assert np.allclose(dense(result, module), mean, atol=1e-6)


def test_gauge_leaves_svd_unchanged_and_changes_factor_mean(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, 1), random_adapter(plan, 2)]
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(4, 4)))[0].astype(np.float32)
    turned = plan_adapter(plan, {m: (turn @ a, b @ turn.T) for m, (a, b) in sites[0].factors.items()})
    module = next(iter(plan.modules))
    one, two = (svd(plan, parent, [x, sites[1]], [0.5, 0.5])[0] for x in (sites[0], turned))
    assert np.allclose(dense(one, module), dense(two, module), atol=1e-5)
    one, two = (factor_mean(plan, parent, [x, sites[1]], [0.5, 0.5])[0] for x in (sites[0], turned))
    assert not np.allclose(dense(one, module), dense(two, module), atol=1e-3)


def test_a_round_that_changed_nothing_is_a_fixed_point(plan):
    start = plan_adapter(plan, initial_factors(plan))
    assert svd(plan, start, [start, start], [0.5, 0.5])[0].digest == start.digest


def test_gram_equals_dense(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, seed) for seed in (1, 2)]
    moves = [np.concatenate([(dense(s, m) - dense(parent, m)).ravel() for m in plan.modules]) for s in sites]
    expected = [[x @ y for y in moves] for x in moves]
    assert np.allclose(gram_of_innovations(parent, sites), expected, rtol=1e-6)
