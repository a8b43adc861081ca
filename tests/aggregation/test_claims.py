"""What sites can gain by claiming more data than they have, or none, or by sending what another site sends."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import factories
from helpers.aggregation import contribution, evaluator, make_plan, score_file, update
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import cut_to_rank
from fedmed_cli.aggregation.combine import combine
from fedmed_cli.aggregation.evidence import collect
from fedmed_cli.aggregation.methods import svd
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.errors import CombineError
from fedmed_cli.records.combining import WEIGHTINGS
from fedmed_cli.records.scores import SiteScore

HUGE = 2**62
CLAIMS = st.one_of(st.integers(0, HUGE), st.integers(0, 20))


@pytest.fixture
def plan():
    return make_plan(sites=("A", "B", "C", "D", "E"))


@pytest.fixture
def parent(plan):
    return plan_adapter(plan, initial_factors(plan))


def sent(plan, parent, claims):
    """A contribution of each site, alike but for the tokens and examples that it claims."""
    result = {}
    for number, (site, claim) in enumerate(claims.items(), 1):
        one = contribution(plan, site, update(plan, parent, number))
        record = dataclasses.replace(one.record, num_tokens=claim, num_examples=claim)
        result[site] = dataclasses.replace(one, record=record)
    return result


def weights_of(plan, parent, claims, weights, **given):
    result = combine(plan, parent, sent(plan, parent, claims), AggregationSettings(weights=weights), **given)
    return {site: one.weight for site, one in result.decisions.items()}


def bound_for_any_claims(k, n):
    return 2 * k / (k + n // 2 + 1)


def bound_for_equal_claims(k, n):
    return 2 * k / (n + k)


ONE = make_plan(sites=("A", "B"))
STANDARD = contribution(ONE, "A", plan_adapter(ONE, initial_factors(ONE)))


def share_of_liars(honest, lies):
    """The liars' part of the weights by claims."""
    claims = {f"H{i}": claim for i, claim in enumerate(honest)} | {f"L{i}": claim for i, claim in enumerate(lies)}
    contributions = {
        site: dataclasses.replace(STANDARD, record=dataclasses.replace(STANDARD.record, num_tokens=claim))
        for site, claim in claims.items()
    }
    sites, _ = collect(STANDARD.adapter, contributions, None, "tokens")
    return sum(site.claimed_weight for name, site in sites.items() if name.startswith("L"))


@st.composite
def federations(draw, honest_claims):
    """Claims of n - k honest sites and of k liars, at most half."""
    n = draw(st.integers(2, 9))
    k = draw(st.integers(1, n // 2))
    return draw(honest_claims(n - k)), draw(st.lists(CLAIMS, min_size=k, max_size=k))


@settings(max_examples=300, deadline=None)
@given(federations(lambda count: st.lists(st.integers(1, HUGE), min_size=count, max_size=count)))
@pytest.mark.slow
def test_half_of_the_sites_cannot_claim_more_than_the_bound(federation):
    honest, lies = federation
    assert share_of_liars(honest, lies) <= bound_for_any_claims(len(lies), len(honest + lies)) + 1e-9


@settings(max_examples=300, deadline=None)
@given(federations(lambda count: st.integers(1, HUGE).map(lambda claim: [claim] * count)))
@pytest.mark.slow
def test_beside_honest_sites_of_one_size_the_bound_is_lower(federation):
    honest, lies = federation
    assert share_of_liars(honest, lies) <= bound_for_equal_claims(len(lies), len(honest + lies)) + 1e-9


def test_the_bounds_are_reached():
    assert share_of_liars([1000], [HUGE]) == pytest.approx(2 / 3)
    assert share_of_liars([1000] * 2, [HUGE] * 2) == pytest.approx(bound_for_equal_claims(2, 4)) == 2 / 3
    assert share_of_liars([1, 1, 10**9], [HUGE] * 2) == pytest.approx(bound_for_any_claims(2, 5), abs=1e-6) == 4 / 5


def test_honest_claims_of_odd_number_are_cut_at_twice_their_median():
    sites, _ = collect(
        STANDARD.adapter,
        {
            site: dataclasses.replace(STANDARD, record=dataclasses.replace(STANDARD.record, num_tokens=claim))
            for site, claim in {"A": 70168, "B": 31454, "C": 17348}.items()
        },
        None,
        "tokens",
    )
    total = 2 * 31454 + 31454 + 17348
    assert sites["A"].claimed_weight == pytest.approx(2 * 31454 / total)
    assert sites["C"].claimed_weight == pytest.approx(17348 / total)


@pytest.mark.parametrize("weights", ["tokens", "examples", "agentic"])
@pytest.mark.parametrize(
    ("claims", "most"),
    [({"A": 1000, "B": HUGE}, 2 / 3), ({"A": 1000, "B": 1000, "C": HUGE, "D": HUGE}, 2 / 3)],
    ids=["1 of 2", "2 of 4"],
)
def test_claims_do_not_take_the_round(plan, parent, claims, most, weights):
    found = weights_of(plan, parent, claims, weights, evaluator=evaluator(plan, parent))
    assert sum(weight for site, weight in found.items() if claims[site] == HUGE) <= most + 0.1 * (weights == "agentic")
    assert all(weight > 0.05 for weight in found.values())


@pytest.mark.parametrize("weights", ["tokens", "examples", "agentic"])
def test_sites_that_claim_nothing_have_no_weight_and_do_not_stop_the_round(plan, parent, weights):
    contributions = sent(plan, parent, {"A": 0, "B": 0, "C": 1000})
    given = {"evaluator": evaluator(plan, parent)}
    result = combine(plan, parent, contributions, AggregationSettings(weights=weights), **given)
    assert {site: one.weight for site, one in result.decisions.items()} == pytest.approx({"A": 0, "B": 0, "C": 1})
    assert result.decisions["A"].verdict == "rejected"
    assert "so it has no weight" in result.decisions["A"].reasons[-1]
    nothing = sent(plan, parent, dict.fromkeys("ABC", 0))
    with pytest.raises(CombineError, match="no site claims any"):
        combine(plan, parent, nothing, AggregationSettings(weights=weights), **given)


# --- copies and empty updates -----------------------------------------------------------------------


def combined(plan, parent, contributions, weights):
    """The decisions under any weights, with whatever those need."""
    gains = {one.record.adapter: SiteScore(0.1, 0.01) for one in contributions.values()}
    scores = [score_file(plan, parent, site, gains) for site in contributions]
    chosen = AggregationSettings(weights=weights)
    given = {"evaluator": evaluator(plan, parent), "scores": scores}
    return combine(plan, parent, contributions, chosen, **given).decisions


def noisy(plan, adapter, share, seed=5):
    """An adapter whose B has Gaussian noise of this share of its norm in each module."""
    rng, factors = np.random.default_rng(seed), {}
    for module, (a, b) in adapter.factors.items():
        noise = rng.normal(size=b.shape)
        factors[module] = (a, (b + share * noise * np.linalg.norm(b) / np.linalg.norm(noise)).astype(np.float32))
    return plan_adapter(plan, factors)


@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_copies_share_one_weight_under_all_weights(plan, parent, weights, noise):
    contributions = {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate("ABCD", 1)}
    copy = contribution(plan, "E", noisy(plan, contributions["D"].adapter, noise))
    without = combined(plan, parent, contributions, weights)["D"].weight
    decisions = combined(plan, parent, contributions | {"E": copy}, weights)
    assert decisions["D"].evidence.copies == ("E",)
    assert decisions["A"].evidence.copies == ()
    both = decisions["D"].weight + decisions["E"].weight
    assert both == pytest.approx(without, abs=0.1 if weights == "agentic" else 1e-9)  # its scores compare all sites
    assert sum(one.weight for one in decisions.values()) == pytest.approx(1)


@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize("size", [0.0, 1e-4])
@pytest.mark.parametrize("start", ["initial", "second round"])
def test_empty_updates_are_rejected_under_all_weights(plan, parent, weights, size, start):
    if start == "second round":
        parent = update(plan, parent, 7)
    contributions = {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate("ABCD", 1)}
    contributions["B"] = contribution(plan, "B", update(plan, parent, 2, size=size))
    decisions = combined(plan, parent, contributions, weights)
    assert {site: one.verdict for site, one in decisions.items() if one.verdict != "accepted"} == {"B": "rejected"}
    assert decisions["B"].weight == 0
    assert "empty update" in decisions["B"].reasons[0]
    assert sum(one.weight for one in decisions.values()) == pytest.approx(1)


@pytest.mark.parametrize("start", ["initial", "second round"])
@pytest.mark.parametrize(("honest", "names"), [("A", "AB"), ("A", "ABC"), ("AB", "ABCD")])
def test_sites_that_send_no_update_do_not_shorten_those_of_the_others(plan, parent, honest, names, start):
    """Half of the sites and more may send back what they started from."""
    if start == "second round":
        parent = update(plan, parent, 7)
    contributions = {site: contribution(plan, site, parent) for site in names}
    contributions |= {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate(honest, 1)}
    decisions = combined(plan, parent, contributions, "uniform")
    for site, one in decisions.items():
        assert one.verdict == ("accepted" if site in honest else "rejected")
        assert one.weight * one.clip_factor == pytest.approx(1 / len(honest) if site in honest else 0)


def test_an_empty_update_of_a_lower_rank_is_rejected_too(plan, parent):
    parent = svd(plan, parent, [update(plan, parent, 7)], [1.0])[0]
    contributions = {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate("A", 1)}
    contributions["B"] = contribution(plan, "B", cut_to_rank(parent, 2))
    decisions = combined(plan, parent, contributions, "uniform")
    assert (decisions["B"].verdict, decisions["B"].weight) == ("rejected", 0)


def test_a_long_update_does_not_make_the_others_empty(plan, parent):
    for names in ("AB", "ABCD"):
        contributions = {site: contribution(plan, site, update(plan, parent, i)) for i, site in enumerate(names, 1)}
        for site in names[len(names) // 2 :]:
            contributions[site] = contribution(plan, site, update(plan, parent, 9, size=1e6, direction=ord(site)))
        assert all(one.weight > 0 for one in combined(plan, parent, contributions, "uniform").values())


# --- claims that cannot be true ---------------------------------------------------------------------


def read_with(tmp_path, **changes):
    """Read a contribution through the gate whose record says something else."""
    plan = factories.without_keys(factories.make_plan())
    workspace = factories.make_workspace(tmp_path / "work", plan)
    path = workspace.contribution("B") / "contribution.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(value))
    return main(["aggregate", "--dry-run", "-q", "-C", str(workspace.root)])


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"num_tokens": HUGE}, 7, "num_tokens must be at most 102,400 (num_examples x max_length), found 4,611"),
        ({"num_trained_tokens": 6145}, 7, "num_trained_tokens must be at most 6,144 (num_trained_examples x max_l"),
        ({"num_trained_examples": 7}, 3, "num_trained_examples must be at most 6 (3 steps), found 7"),
        ({"num_truncated": 101}, 3, "num_truncated must be at most 100 (num_examples), found 101"),
    ],
)
def test_claims_that_cannot_be_true_are_refused(tmp_path, capsys, changes, code, message):
    assert read_with(tmp_path, **changes) == code
    assert message in capsys.readouterr().err


def test_claims_at_the_limit_pass(tmp_path):
    assert read_with(tmp_path, num_tokens=102_400, num_trained_tokens=6144, num_truncated=100) == 0
