"""The intervals that every comparison rests on: simulations whose true value is known."""

import math

import numpy as np
import pytest

from fedmed_cli import intervals
from fedmed_cli.intervals import Losses

NUM_SIMULATIONS = 2000


def clustered(generator, num_groups, skewed):
    """One data set: for each example its group, its tokens, and its difference in nats; the true ratio is -0.1.

    Groups are as unlike in size as MedQuAD's topics (1 to about 20 examples), answers in length (a few to 500
    tokens), and half of an example's deviation is its group's.
    """
    sizes = generator.geometric(0.3, num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    if skewed:
        effect, noise = generator.gamma(1.0, size=num_groups) - 1, 1 - generator.gamma(1.0, size=len(groups))
    else:
        effect, noise = generator.normal(size=num_groups), generator.normal(size=len(groups))
    tokens = np.ceil(np.exp(generator.normal(4, 0.8, len(groups))))
    return groups, tokens, tokens * (-0.1 + 0.4 * effect[groups] + 0.4 * noise)


@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
@pytest.mark.parametrize("num_groups", [5, 10, 30, 100])
@pytest.mark.slow
def test_intervals_of_clustered_data_cover_the_truth_95_times_in_100(num_groups, skewed):
    generator = np.random.Generator(np.random.Philox(num_groups))
    covered = 0
    for _ in range(NUM_SIMULATIONS):
        groups, tokens, difference = clustered(generator, num_groups, skewed)
        base = Losses(generator.uniform(0, 4, len(tokens)) * tokens, tokens)
        found = intervals.paired_interval(Losses(base.nll + difference, tokens), base, groups)
        covered += found.low <= -0.1 <= found.high
    assert 0.93 <= covered / NUM_SIMULATIONS <= 0.97


def test_equal_losses_differ_by_exactly_nothing():
    losses = Losses(np.array([3.1, 2.7, 0.3]), np.array([4, 5, 6]))
    assert intervals.paired_interval(losses, losses, ["a", "b", "c"]) == intervals.Interval(0.0, 0.0, 0.0)


def test_an_interval_does_not_depend_on_the_order_of_examples_and_resamples_whole_groups():
    generator = np.random.Generator(np.random.Philox(1))
    groups, tokens, difference = clustered(generator, 40, True)
    names = np.array([f"g{group:03d}" for group in groups])
    zeros = Losses(np.zeros(len(tokens)), tokens)
    order = generator.permutation(len(tokens))
    found = intervals.paired_interval(Losses(difference, tokens), zeros, names)
    again = intervals.paired_interval(Losses(difference[order], tokens[order]), zeros.take(order), names[order])
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-12)
    alone = intervals.paired_interval(Losses(difference, tokens), zeros, [str(i) for i in range(len(tokens))])
    assert found.high - found.low > 1.3 * (alone.high - alone.low)  # examples of a group are alike


def test_two_groups_give_a_wide_interval_and_one_gives_none():
    losses, zeros = Losses(np.array([1.0, 2.0]), np.ones(2)), Losses(np.zeros(2), np.ones(2))
    wide = intervals.paired_interval(losses, zeros, ["a", "b"])
    assert wide.mean == 1.5
    assert wide.low < 0 < 3 < wide.high
    assert intervals.paired_interval(losses, zeros, ["a", "a"]) == intervals.Interval(1.5, 1.5, 1.5)


@pytest.mark.parametrize("gain", [0.25, 0.4, 1.0], ids=["weak", "fair", "strong"])
@pytest.mark.slow
def test_shares_of_a_gain_cover_the_truth_95_times_in_100_however_small_that_gain_is(gain):
    """A gain of 0.25 is three of its standard errors or so; a bootstrap's intervals hold the truth 60 times in 100."""
    generator = np.random.Generator(np.random.Philox(4))
    covered = given = 0
    for _ in range(NUM_SIMULATIONS):
        groups, tokens, difference = clustered(generator, 40, False)
        zeros = np.zeros(len(tokens))
        noise = tokens * 0.3 * generator.normal(size=len(tokens))
        bound = difference + (0.1 - gain) * tokens
        one = 0.6 * bound + noise
        found = intervals.share_of_gain(*(Losses(nll, tokens) for nll in (zeros, one, bound)), groups)
        if found is not None:
            given += 1
            covered += found.low <= 0.6 <= found.high
    assert given > 0.6 * NUM_SIMULATIONS
    assert 0.93 <= covered / given <= 0.97


def test_a_share_of_a_gain_that_is_not_clear_is_none():
    start, bound = (Losses(np.array(nll), np.ones(4)) for nll in ([2.0, 2.0, 2.0, 2.0], [1.0, 1.5, 1.2, 1.4]))
    assert intervals.share_of_gain(start, bound, bound, list("abcd")) == intervals.Interval(1.0, 1.0, 1.0)
    assert intervals.share_of_gain(start, bound, bound, list("aaaa")) is None  # one group
    assert intervals.share_of_gain(bound, start, start, list("abcd")) is None  # worse
    unclear = Losses(np.array([1.0, 2.9, 1.2, 2.8]), np.ones(4))
    assert intervals.share_of_gain(start, bound, unclear, list("abcd")) is None


@pytest.mark.slow
def test_many_groups_of_one_size_give_the_textbook_interval():
    values = np.random.Generator(np.random.Philox(2)).normal(3, 2, 4000)
    found = intervals.mean_interval(values, [str(i) for i in range(4000)])
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.04)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (7, 10), (50, 50)])
def test_wilson_is_scipys(count, total):
    from scipy.stats import binomtest

    expected = binomtest(count, total).proportion_ci(method="wilson")
    found = intervals.wilson(count, total)
    assert (found.mean, found.low, found.high) == pytest.approx((count / total, expected.low, expected.high), abs=1e-12)


def test_differences_of_paired_shares_cover_the_truth_95_times_in_100():
    generator = np.random.Generator(np.random.Philox(8))
    for gain, loss, total in ((0.10, 0.06, 50), (0.02, 0.02, 100), (0.2, 0.1, 300), (0.01, 0.0, 60)):
        counts = generator.multinomial(total, [gain, loss, 1 - gain - loss], size=20_000)
        found = {
            tuple(pair): intervals.paired_shares(*map(int, pair), total) for pair in np.unique(counts[:, :2], axis=0)
        }
        covered = np.mean([found[tuple(pair)].low <= gain - loss <= found[tuple(pair)].high for pair in counts[:, :2]])
        assert covered >= 0.93, (gain, loss, total)  # with few discordant questions it is cautious: up to 99 %


def test_no_question_that_tells_two_apart_still_leaves_doubt():
    found = intervals.paired_shares(0, 0, 47)
    assert found.mean == 0.0
    assert -0.08 < found.low < -0.02
    assert found.low == -found.high
