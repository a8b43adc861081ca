"""The coordinator agent on a model whose loss is known: a quadratic around a target, with noise per example."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
from helpers.aggregation import contribution, dense, evaluator, make_plan, score_file, update

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.aggregation.combine import combine
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli import options
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.records.scores import SiteScore

AGENTIC = AggregationSettings(weights="agentic")


@pytest.fixture
def plan():
    return make_plan(sites=("A", "B", "C", "D", "E"))


@pytest.fixture
def parent(plan):
    return plan_adapter(plan, initial_factors(plan))


def honest(plan, parent, sites="ABC"):
    return {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate(sites, 1)}


def change(one, plan, edit):
    adapter = plan_adapter(plan, {m: edit(m, a, b) for m, (a, b) in one.adapter.factors.items()})
    return contribution(plan, one.record.site, adapter)


ATTACKS = {
    "sign flip": lambda m, a, b: (a, -b),
    "noise": lambda m, a, b: (a, np.random.default_rng(7).normal(0, 0.15, b.shape).astype(np.float32)),
    "turned": lambda m, a, b: (a[::-1].copy(), b),  # A and B look as before, their product does not
}


@pytest.mark.parametrize("sites", ["ABC", "ABCDE"])
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_one_harmful_update_is_rejected_with_its_reasons(plan, parent, sites, attack):
    contributions = honest(plan, parent, sites)
    contributions["B"] = change(contributions["B"], plan, ATTACKS[attack])
    result = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    verdicts = {site: one.verdict for site, one in result.decisions.items()}
    assert verdicts == dict.fromkeys(sites, "accepted") | {"B": "rejected"}
    bad = result.decisions["B"]
    assert bad.weight == 0
    assert bad.evidence.left_out_gain.low > 0
    assert "without it the round gains" in " ".join(bad.reasons)
    oracle = combine(
        plan,
        parent,
        {s: one for s, one in contributions.items() if s != "B"},
        AGENTIC,
        evaluator=evaluator(plan, parent),
    )
    assert result.adapter.digest == oracle.adapter.digest


def test_without_an_attack_nobody_is_rejected_and_weights_stay_near_the_claims(plan, parent):
    for seed in range(20):
        result = combine(plan, parent, honest(plan, parent, "ABCDE"), AGENTIC, evaluator=evaluator(plan, parent, seed))
        assert {one.verdict for one in result.decisions.values()} == {"accepted"}
        for one in result.decisions.values():
            assert one.prior / 4 <= one.weight <= 2 / 5
    assert result.examination.result.mean < result.examination.parent.mean


def idle(plan, parent, contributions, seed=0, **curve):
    """How the coordinator decides on an update D that moves a twentieth of the way, then on one that moves a third."""
    found = []
    for size in (0.05, 0.35):
        sent = contributions | {"D": contribution(plan, "D", update(plan, parent, 9, size=size))}
        result = combine(plan, parent, sent, AGENTIC, evaluator=evaluator(plan, parent, seed, **curve))
        found.append(result.decisions)
    return found


def test_an_update_that_brings_next_to_nothing_is_rejected_and_a_small_one_kept(plan, parent):
    for seed in range(5):
        little, third = idle(plan, parent, honest(plan, parent), seed)
        assert {site: one.verdict for site, one in little.items()} == {
            "A": "accepted", "B": "accepted", "C": "accepted", "D": "rejected",
        }  # fmt: skip
        assert "less than a fifth" in little["D"].reasons[-1]
        assert little["D"].evidence.gain.mean > 0
        assert third["D"].verdict == "accepted"


def test_where_all_gains_are_small_nobody_is_rejected_for_bringing_little(plan, parent):
    little, _ = idle(plan, parent, honest(plan, parent), curve=0.15)
    median = statistics.median(one.evidence.gain.mean for one in little.values())
    assert 0 < median < 0.05
    assert little["D"].evidence.gain.mean < 0.2 * median
    assert little["D"].verdict == "accepted"


def test_an_update_eight_times_too_long_is_shortened_and_kept(plan, parent):
    contributions = honest(plan, parent)
    contributions["C"] = change(contributions["C"], plan, lambda m, a, b: (a, 8 * b))
    result = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    assert result.decisions["C"].verdict == "clipped"
    norms = sorted(one.evidence.update_norm for one in result.decisions.values())
    assert result.decisions["C"].clip_factor == pytest.approx(1.5 * norms[1] / norms[2])


def test_an_empty_update_is_rejected_for_it_would_dilute(plan, parent):
    contributions = honest(plan, parent) | {"D": contribution(plan, "D", parent)}
    result = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    assert result.decisions["D"].verdict == "rejected"
    assert "empty update" in result.decisions["D"].reasons[0]


def test_copies_share_one_weight(plan, parent):
    contributions = honest(plan, parent, "ABCD")
    alone = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    contributions["E"] = contribution(plan, "E", contributions["D"].adapter)
    result = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    assert result.decisions["D"].evidence.copies == ("E",)
    assert result.decisions["D"].weight == pytest.approx(result.decisions["E"].weight)
    both = result.decisions["D"].weight + result.decisions["E"].weight
    assert both == pytest.approx(alone.decisions["D"].weight, abs=0.1)
    assert both < 0.35


def test_a_false_loss_moves_no_default_weight(plan, parent):
    contributions = honest(plan, parent)
    truth = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    liar = contributions | {"A": contribution(plan, "A", contributions["A"].adapter, before=9.0, after=0.0)}
    for weights in ("tokens", "agentic"):
        settings = AggregationSettings(weights=weights)
        one, two = (
            combine(plan, parent, x, settings, evaluator=evaluator(plan, parent)).adapter.digest
            for x in (contributions, liar)
        )
        assert one == two
    assert combine(plan, parent, liar, AggregationSettings(weights="self-reported")).decisions["A"].weight > 0.5
    assert truth.decisions["A"].evidence.reported_gain == pytest.approx(0.5)


def test_at_least_half_of_the_sites_stay(plan, parent):
    contributions = honest(plan, parent)
    for site in "AB":
        contributions[site] = change(contributions[site], plan, ATTACKS["sign flip"])
    result = combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    assert sum(one.verdict != "rejected" for one in result.decisions.values()) == 2


def test_all_empty_is_an_error(plan, parent):
    contributions = {site: contribution(plan, site, parent) for site in "ABC"}
    with pytest.raises(CombineError, match="every contribution was rejected"):
        combine(plan, parent, contributions, AGENTIC, evaluator=evaluator(plan, parent))
    with pytest.raises(InputError, match="coordinator's examples"):
        combine(plan, parent, contributions, AGENTIC)


def test_the_line_search_takes_the_longer_step_only_where_it_surely_helps(plan, parent):
    short = {site: contribution(plan, site, update(plan, parent, i, size=0.5)) for i, site in enumerate("ABC", 1)}
    settings = dataclasses.replace(AGENTIC, server_lr=None)
    result = combine(plan, parent, short, settings, evaluator=evaluator(plan, parent))
    assert result.server_lr == 2.0  # the target lies at twice the mean of the updates
    assert set(result.examination.server_lr_losses) == {"1", "1.5", "2", "3"}
    result = combine(plan, parent, honest(plan, parent), settings, evaluator=evaluator(plan, parent))
    assert result.server_lr == 1.0


@pytest.mark.parametrize(
    ("method", "weights", "given", "wanted"),
    [
        ("svd", "agentic", None, None),
        ("svd", "tokens", None, 1.0),
        ("stack", "agentic", None, 1.0),
        ("svd", "agentic", "1", 1.0),
        ("svd", "tokens", "auto", None),
    ],
)
def test_the_step_is_searched_for_where_the_coordinator_measures(method, weights, given, wanted):
    assert options.AggregationOptions(method=method, server_lr=given).settings(lambda: weights).server_lr == wanted


def test_what_chose_the_step_is_recorded_under_any_weights(plan, parent):
    short = {site: contribution(plan, site, update(plan, parent, i, size=0.5)) for i, site in enumerate("ABC", 1)}
    result = combine(plan, parent, short, AggregationSettings(server_lr=None), evaluator=evaluator(plan, parent))
    assert result.server_lr == 2.0
    assert set(result.examination.server_lr_losses) == {"1", "1.5", "2", "3"}
    assert result.examination.examples_digest == "e" * 64


def test_fedexp_takes_no_step_that_a_record_could_not_hold(plan, parent):
    up = update(plan, parent, 1)
    back = COMBINE["svd"](plan, parent, [up], [-0.99], None)[0]
    contributions = {"A": contribution(plan, "A", up), "B": contribution(plan, "B", back)}
    result = combine(plan, parent, contributions, AggregationSettings(server_lr=None, weights="uniform"))
    assert result.server_lr == 10


@pytest.mark.parametrize("weights", ["agentic", "self-reported", "tokens"])
@pytest.mark.parametrize("names", ["A", "ABC"])
def test_without_any_update_there_is_nothing_to_combine(plan, parent, weights, names):
    contributions = {name: contribution(plan, name, parent) for name in names}
    with pytest.raises(CombineError, match="every contribution was rejected"):
        combine(plan, parent, contributions, AggregationSettings(weights=weights), evaluator=evaluator(plan, parent))


def test_fedexp_is_its_formula(plan, parent):
    contributions = {
        site: contribution(plan, site, update(plan, parent, i, direction=i)) for i, site in enumerate("ABC", 1)
    }
    result = combine(plan, parent, contributions, AggregationSettings(server_lr=None, weights="uniform", clip=None))
    moves = [
        np.concatenate([(dense(s.adapter, m) - dense(parent, m)).ravel() for m in plan.modules])
        for s in contributions.values()
    ]
    expected = sum(x @ x for x in moves) / (2 * 3 * np.sum(np.mean(moves, axis=0) ** 2))
    assert expected > 1.01
    assert result.server_lr == pytest.approx(expected, rel=1e-6)


def test_self_reported_needs_a_loss_of_each_site(plan, parent):
    contributions = honest(plan, parent)
    record = dataclasses.replace(contributions["B"].record, validation_before=None, validation_after=None)
    contributions["B"] = dataclasses.replace(contributions["B"], record=record)
    with pytest.raises(CombineError, match="--weights self-reported: site B reports no validation loss"):
        combine(plan, parent, contributions, AggregationSettings(weights="self-reported"))


def test_crosseval_ignores_what_a_site_says_of_itself_and_one_liar(plan, parent):
    contributions = honest(plan, parent, "ABCDE")
    true = {"A": 0.10, "B": 0.10, "C": 0.10, "D": 0.02, "E": 0.10}
    digests = {site: one.record.adapter for site, one in contributions.items()}

    def reports(liar=None):
        found = []
        for site in "ABCDE":
            gains = {digests[s]: SiteScore(5.0 if site == liar and s == liar else true[s], 0.01) for s in true}
            if site == liar:
                gains |= {digests[s]: SiteScore(-5.0, 0.01) for s in true if s != liar}
            found.append(score_file(plan, parent, site, gains))
        return found

    settings = AggregationSettings(weights="crosseval")
    honest_weights = combine(plan, parent, contributions, settings, scores=reports()).decisions
    assert honest_weights["D"].weight < honest_weights["A"].weight
    lied = combine(plan, parent, contributions, settings, scores=reports(liar="D")).decisions
    assert {s: one.weight for s, one in lied.items()} == pytest.approx(
        {s: one.weight for s, one in honest_weights.items()}
    )
    few = {site: contributions[site] for site in "ABC"}
    with pytest.raises(CombineError, match="at least 4 contributions, found 3"):
        combine(plan, parent, few, settings, scores=reports())
    with pytest.raises(CombineError, match="was scored by 2 other sites, expected at least 3"):
        combine(plan, parent, contributions, settings, scores=reports()[:3])


def test_more_than_100_sites_are_combined_without_pairs(plan, parent):
    names = tuple(f"H{i:03d}" for i in range(1, 131))
    plan = make_plan(sites=names)
    one = update(plan, parent, 1)
    contributions = {name: contribution(plan, name, one) for name in names}
    result = combine(plan, parent, contributions, AggregationSettings())
    assert all(site.weight == pytest.approx(1 / 130) for site in result.decisions.values())
    assert "more than 100" in result.decisions["H001"].reasons[0]
    module = next(iter(plan.modules))
    assert np.allclose(dense(result.adapter, module), dense(one, module), atol=1e-5)
    with pytest.raises(CombineError, match="at most 100 sites, found 130"):
        combine(plan, parent, contributions, AggregationSettings(robust="geometric-median"))


def test_momentum_makes_the_second_step_longer(plan, parent):
    before, start = parent, update(plan, parent, 1)
    contributions = {site: contribution(plan, site, update(plan, start, i)) for i, site in enumerate("AB", 3)}
    plain, moved = (
        combine(plan, start, contributions, AggregationSettings(server_momentum=beta), before=before).adapter
        for beta in (0.0, 0.5)
    )
    module = next(iter(plan.modules))
    wanted = dense(plain, module) + 0.5 * (dense(start, module) - dense(before, module))
    assert np.linalg.norm(dense(moved, module) - wanted) < 0.35 * np.linalg.norm(wanted)
    assert math.dist(dense(moved, module).ravel(), dense(start, module).ravel()) > math.dist(
        dense(plain, module).ravel(), dense(start, module).ravel()
    )
