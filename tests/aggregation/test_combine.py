"""Aggregation in factor space against an independent dense reference."""

import math

import numpy as np
import pytest
from helpers.aggregation import contribution, dense, make_plan

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import cut_to_rank, decompose, gram_of_innovations, thin_qr
from fedmed_cli.aggregation import shares
from fedmed_cli.aggregation.combine import combine
from fedmed_cli.aggregation.methods import factor_mean, stack, svd
from fedmed_cli.aggregation.robust import MEANS, distances_to
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.aggregation.weighting import demo_weights
from fedmed_cli.errors import CombineError

PATTERNS = {"rank_pattern": {"q_proj": 6, "layers.1.v_proj": 2}, "alpha_pattern": {"v_proj": 3.0}}
KINDS = {"plain": {}, "rslora": {"use_rslora": True}, "patterns": PATTERNS, "both": {"use_rslora": True} | PATTERNS}


@pytest.fixture(params=KINDS)
def plan(request):
    return make_plan(**KINDS[request.param])


def random_adapter(plan, seed, r=None):
    """Normal factors of the plan's ranks, none above `r`."""
    rng = np.random.default_rng(seed)
    factors = {}
    for module, (size_out, size_in) in plan.modules.items():
        rank = min(r or plan.max_rank, plan.rank(module))
        a, b = rng.normal(0, 0.3, (rank, size_in)), rng.normal(0, 0.1, (size_out, rank))
        factors[module] = a.astype(np.float32), b.astype(np.float32)
    return plan_adapter(plan, factors, min(r or plan.lora.r, plan.lora.r))


def dense_mean(parent, sites, coefficients, module):
    """G + Σ c_i·(s_i·B_i·A_i − G cut to r_i), the definition itself."""
    total = dense(parent, module)
    for c, site in zip(coefficients, sites, strict=True):
        total = total + c * (dense(site, module) - dense(parent, module, len(site.factors[module][0])))
    return total


def best_of_rank(matrix, r):
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :r] * s[:r]) @ vt[:r]


@pytest.mark.parametrize("coefficients", [[0.5, 0.3, 0.2], [0.2, 0.1, 0.1], [1.0, 0.6, 0.4]])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 2, 4), (4, 2, 1)])
def test_svd_is_the_dense_optimum_and_predicts_its_error(plan, ranks, coefficients):
    parent = svd(plan, random_adapter(plan, 0), [random_adapter(plan, 9)], [1.0])[0]  # components in order
    sites = [random_adapter(plan, seed, r) for seed, r in zip((1, 2, 3), ranks, strict=True)]
    result, truncation = svd(plan, parent, sites, coefficients)
    cut = total = 0.0
    for module in plan.modules:
        mean = dense_mean(parent, sites, coefficients, module)
        best, found = best_of_rank(mean, plan.rank(module)), dense(result, module)
        assert np.linalg.norm(found - best) <= 1e-5 * np.linalg.norm(best)
        measured = np.linalg.norm(found - mean) / np.linalg.norm(mean)
        assert truncation.modules[module] == pytest.approx(measured, abs=1e-5)
        cut += np.linalg.norm(found - mean) ** 2
        total += np.linalg.norm(mean) ** 2
    assert truncation.overall == pytest.approx(math.sqrt(cut / total), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_module_has_the_scaling_that_the_plan_gives_it_at_any_rank(kind):
    plan = make_plan(**KINDS[kind])
    root = kind in ("rslora", "both")
    wanted = {"layers.0.q_proj": (4, 8.0), "layers.1.v_proj": (4, 8.0)}
    if kind in ("patterns", "both"):
        wanted = {"layers.0.q_proj": (6, 8.0), "layers.1.v_proj": (2, 3.0)}
    for limit in (None, 5, 3, 1):
        adapter = random_adapter(plan, 1, limit)
        for module, (rank, alpha) in wanted.items():
            assert adapter.rank(module) == min(rank, limit or 6)
            assert adapter.scale(module) == pytest.approx(alpha / (math.sqrt(rank) if root else rank))
        if limit:
            cut = cut_to_rank(random_adapter(plan, 1), limit)
            assert cut.config == adapter.config


def test_one_site_and_identical_sites_give_that_site(plan):
    parent, site = random_adapter(plan, 0), random_adapter(plan, 1)
    for sites, coefficients in (([site], [1.0]), ([site] * 3, [0.2, 0.5, 0.3])):
        result, truncation = svd(plan, parent, sites, coefficients)
        assert truncation.overall < 1e-6
        for module in plan.modules:
            assert np.allclose(dense(result, module), dense(site, module), atol=1e-6)


def test_stack_is_exact(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, 1), random_adapter(plan, 2, 2)]
    result, _ = stack(plan, parent, sites, [0.25, 0.5])
    for module in plan.modules:
        assert np.allclose(dense(result, module), dense_mean(parent, sites, [0.25, 0.5], module), atol=1e-6)


def test_gauge_leaves_svd_unchanged_and_changes_factor_mean(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, 1), random_adapter(plan, 2)]
    rng, factors = np.random.default_rng(9), {}
    for name, (a, b) in sites[0].factors.items():
        turn = np.linalg.qr(rng.normal(size=(len(a), len(a))))[0].astype(np.float32)
        factors[name] = turn @ a, b @ turn.T
    turned = plan_adapter(plan, factors)
    module = next(iter(plan.modules))
    one, two = (svd(plan, parent, [x, sites[1]], [0.5, 0.5])[0] for x in (sites[0], turned))
    assert np.allclose(dense(one, module), dense(two, module), atol=1e-5)
    one, two = (factor_mean(plan, parent, [x, sites[1]], [0.5, 0.5])[0] for x in (sites[0], turned))
    assert not np.allclose(dense(one, module), dense(two, module), atol=1e-3)


def test_factor_mean_of_mixed_ranks_is_refused():
    plan = make_plan()
    with pytest.raises(CombineError, match=r"one rank in each module: layers.0.q_proj has ranks 2, 4"):
        factor_mean(plan, random_adapter(plan, 0), [random_adapter(plan, 1), random_adapter(plan, 2, 2)], [0.5, 0.5])


def test_the_order_of_the_sites_changes_no_bit(plan):
    from fedmed_cli.aggregation.combine import combine
    from fedmed_cli.aggregation.state import AggregationSettings

    contributions = {site: contribution(plan, site, random_adapter(plan, i)) for i, site in enumerate("ABC", 1)}
    parent = random_adapter(plan, 0)
    digests = {
        combine(plan, parent, {site: contributions[site] for site in order}, AggregationSettings()).adapter.digest
        for order in ("ABC", "CBA", "BCA")
    }
    assert len(digests) == 1


def test_a_round_that_changed_nothing_is_a_fixed_point_with_mixed_ranks_too(plan):
    start = plan_adapter(plan, initial_factors(plan))
    assert svd(plan, start, [start, start], [0.5, 0.5])[0].digest == start.digest
    parent = svd(plan, random_adapter(plan, 0), [random_adapter(plan, 9)], [1.0])[0]
    sites = [cut_to_rank(parent, r) for r in (1, 2, 4)]
    result, truncation = svd(plan, parent, sites, [0.5, 0.3, 0.2])
    for module in plan.modules:
        assert np.allclose(dense(result, module), dense(parent, module), atol=1e-6)
    assert truncation.overall < 1e-6


def test_a_low_rank_site_does_not_shrink_what_it_cannot_see(plan):
    parent = svd(plan, random_adapter(plan, 0), [random_adapter(plan, 9)], [1.0])[0]
    result, _ = svd(plan, parent, [cut_to_rank(parent, 1)], [1.0])
    module = next(iter(plan.modules))
    assert np.allclose(dense(result, module), dense(parent, module), atol=1e-6)


def test_factors_are_as_unlike_as_one_training_from_the_initial_adapter_leaves_them(plan):
    # Gradient descent keeps A·Aᵀ − Bᵀ·B, and with it how fast a component learns; the initial adapter has B = 0.
    parent = plan_adapter(plan, initial_factors(plan))
    result, _ = svd(plan, parent, [random_adapter(plan, 1), random_adapter(plan, 2)], [0.7, 0.3])
    for module, (initial, _) in initial_factors(plan).items():
        a, b = (part.astype(np.float64) for part in result.factors[module])
        assert np.allclose(a @ a.T - b.T @ b, np.diag(np.linalg.norm(initial, axis=1) ** 2), atol=1e-6)
        sizes = np.linalg.norm(b, axis=0) * np.linalg.norm(a, axis=1)
        assert sizes[0] > 1.2 * sizes[-1]  # components of unlike size
        assert list(sizes) == sorted(sizes, reverse=True)


def test_a_component_that_fell_to_zero_can_learn_again(plan):
    parent = plan_adapter(plan, initial_factors(plan))
    module = next(iter(plan.modules))
    factors = dict(parent.factors)
    rng = np.random.default_rng(3)
    factors = {
        m: (a, np.pad(rng.normal(size=(len(b), 1)), ((0, 0), (0, len(a) - 1))).astype(np.float32))
        for m, (a, b) in factors.items()
    }
    result, _ = svd(plan, parent, [plan_adapter(plan, factors)], [1.0])
    a, b = result.factors[module]
    assert not b[:, 1:].any()
    assert np.all(np.linalg.norm(a[1:], axis=1) > 0.1)  # dL/dB = s·dL/dW·Aᵀ is not zero where A is not
    assert np.allclose(a[:1] @ a[1:].T, 0, atol=1e-5)
    initial = initial_factors(plan)[module][0]
    assert np.allclose(np.linalg.norm(a[1:], axis=1), np.linalg.norm(initial[1:], axis=1), rtol=1e-5)


def test_gram_equals_dense_with_mixed_ranks(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, 1), random_adapter(plan, 2, 2), random_adapter(plan, 3, 1)]
    moves = [
        np.concatenate([(dense(site, m) - dense(parent, m, len(site.factors[m][0]))).ravel() for m in plan.modules])
        for site in sites
    ]
    expected = np.array([[x @ y for y in moves] for x in moves])
    assert np.allclose(gram_of_innovations(parent, sites), expected, rtol=1e-6, atol=1e-9)


def test_more_sites_than_the_matrix_has_rows_stay_exact(plan):
    parent = random_adapter(plan, 0)
    sites = [random_adapter(plan, seed) for seed in range(1, 12)]  # stacked rank 48, matrices of 8 and 12 rows
    coefficients = [1 / 11] * 11
    result, _ = svd(plan, parent, sites, coefficients)
    for module in plan.modules:
        best = best_of_rank(dense_mean(parent, sites, coefficients, module), plan.rank(module))
        assert np.linalg.norm(dense(result, module) - best) <= 1e-5 * np.linalg.norm(best)


def test_momentum_adds_a_share_of_the_last_step(plan):
    before, parent, site = (random_adapter(plan, seed, 1) for seed in (0, 1, 2))
    result, _ = svd(plan, parent, [site], [0.5], (0.9, before))
    for module in plan.modules:
        wanted = dense(parent, module) + 0.5 * (dense(site, module) - dense(parent, module))
        wanted = wanted + 0.9 * (dense(parent, module) - dense(before, module))
        assert np.allclose(dense(result, module), best_of_rank(wanted, plan.rank(module)), atol=1e-5)


def test_thin_qr_and_decompose_reconstruct_hard_matrices():
    rng = np.random.default_rng(0)
    tall = rng.normal(size=(50, 6))
    near = [tall + size * rng.normal(size=(50, 6)) for size in (1e-2, 1e-4, 1e-7)]
    alike = [np.hstack([tall, other]) for other in near]
    scaled = tall * [1e8, 1, 1, 1e-8, 1, 1]
    for matrix in (tall, scaled, *alike, np.hstack([tall, tall[:, :2]]), tall[:4], np.zeros((5, 2))):
        q, c, r = thin_qr(matrix)
        assert np.allclose((q @ c).T @ (q @ c), np.eye(len(r)), atol=1e-9)
        assert np.allclose(q @ c @ r, matrix, atol=1e-12 * max(1, np.abs(matrix).max()))
    u, s, vt = decompose((tall, rng.normal(size=(6, 30))))
    assert np.allclose(u.T @ u, np.eye(6), atol=1e-10)
    assert np.allclose(vt @ vt.T, np.eye(6), atol=1e-10)
    assert np.all(np.diff(s) <= 0)


# --- robust means -----------------------------------------------------------------------------------


@pytest.fixture
def points():
    """Six honest points near (1, 0, …) and one far away, with weights."""
    rng = np.random.default_rng(5)
    honest = np.array([1.0, 0, 0, 0]) + rng.normal(0, 0.1, (6, 4))
    return np.vstack([honest, [[-30, 40, 0, 0]]])


def test_distances_from_the_gram_matrix(points):
    a = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05])
    expected = np.linalg.norm(points - a @ points, axis=1)
    assert np.allclose(distances_to(points @ points.T, a), expected)


def test_geometric_median_minimises_the_sum_of_distances(points):
    weights = np.full(7, 1 / 7)
    found = MEANS["geometric-median"](points @ points.T, weights, 1) @ points

    def cost(point):
        return weights @ np.linalg.norm(points - point, axis=1)

    rng = np.random.default_rng(1)
    assert all(cost(found) <= cost(found + step) + 1e-9 for step in rng.normal(0, 0.05, (200, 4)))
    assert np.linalg.norm(found - [1, 0, 0, 0]) < 0.2 < np.linalg.norm(weights @ points - [1, 0, 0, 0])


def test_multi_krum_drops_the_outlier(points):
    coefficients = MEANS["multi-krum"](points @ points.T, np.full(7, 1 / 7), 1)
    assert coefficients[-1] == 0
    assert coefficients[:-1] == pytest.approx(1 / 6)


def test_centred_clipping_bounds_what_one_site_can_do(points):
    weights = np.full(7, 1 / 7)
    found = MEANS["centred-clipping"](points @ points.T, weights, 1) @ points
    assert np.linalg.norm(found - [1, 0, 0, 0]) < 0.5
    # The definition, with vectors instead of coefficients.
    radius, v = np.median(np.linalg.norm(points, axis=1)), np.zeros(4)
    for _ in range(5):
        steps = points - v
        v = v + weights @ (steps * np.minimum(1, radius / np.linalg.norm(steps, axis=1))[:, None])
    assert np.allclose(found, v)


@pytest.mark.parametrize(
    ("rule", "sites", "malicious", "wanted"), [("multi-krum", 4, 1, 5), ("geometric-median", 2, 1, 3)]
)
def test_preconditions_are_refused_with_the_numbers(rule, sites, malicious, wanted):
    with pytest.raises(CombineError, match=f"at least {wanted} contributions, found {sites}"):
        MEANS[rule](np.eye(sites), np.full(sites, 1 / sites), malicious)


# --- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"server_lr": 2.0}, {"server_lr": None}, {"server_momentum": 0.5}])
@pytest.mark.parametrize("method", ["factor-mean", "stack"])
def test_a_method_without_a_step_is_refused_another_one(method, more):
    plan = make_plan()
    with pytest.raises(CombineError, match=f"{method} takes the server's step 1 without momentum"):
        combine(plan, random_adapter(plan, 0), {}, AggregationSettings(method=method, **more))


def test_self_reported_is_the_rule_of_the_demo():
    before, after = np.array([0.0375, 0.2991, 14.3051]), np.array([0.3217, 0.0416, 0.2043])
    weights = demo_weights(before, after, np.array([4520.0, 2521.0, 2959.0]))
    assert weights == pytest.approx([0.227493, 0.547338, 0.225169], abs=5e-7)


def test_self_reported_is_won_by_lying():
    before, after = np.array([3.0, 3.0, 0.95]), np.array([2.0, 2.1, 0.0])  # the last claims loss 0, and the mean gain
    assert demo_weights(before, after, np.full(3, 1000.0))[-1] > 0.55


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_and_what_is_cut_goes_to_the_others_in_proportion(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    sites = [f"S{i}" for i in range(k)]
    raw = dict(zip(sites, rng.dirichlet([0.3] * k), strict=True))
    prior = dict(zip(sites, rng.dirichlet([2.0] * k), strict=True))
    found = shares.bound_weights(raw, prior)
    assert sum(found.values()) == pytest.approx(1)
    free = []
    for site in sites:
        low, high = min(prior[site] / 4, min(1, 2 / k)), min(1, 2 / k)
        assert low - 1e-9 <= found[site] <= high + 1e-9
        if low + 1e-9 < found[site] < high - 1e-9:
            free.append(found[site] / raw[site])
    assert np.ptp(free) < 1e-6 * max(free) if free else True


def test_a_false_token_count_moves_a_weight_at_most_to_the_cap():
    """The worst case: one of k equal sites claims without limit. It gets 2/(k+1) instead of 1/k."""
    for k in (2, 3, 4, 5, 10):
        claims = {f"S{i}": 1000.0 for i in range(k)} | {"S0": 1e12}
        cap = shares.claim_cap(claims.values())
        share = shares.normalise({site: min(claim, cap) for site, claim in claims.items()})["S0"]
        assert share == pytest.approx(2 / (k + 1))
