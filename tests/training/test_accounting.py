"""Epsilon is what dp-accounting says, and the noise for an epsilon keeps to it."""

import itertools

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from fedmed_cli.errors import InputError
from fedmed_cli.records.privacy import Mechanism
from fedmed_cli.training import accounting

RATES, STEPS = (0.005, 0.05, 0.25, 1.0), (3,)
SETTINGS = list(itertools.product(RATES, (2.0, 6.0, 20.0, 50.0), STEPS))
SETTINGS += [pytest.param(*one, marks=pytest.mark.slow) for one in itertools.product(RATES, (1.0,), STEPS)]


def by_hand(accountant, mechanisms, delta):
    for one in mechanisms:
        step = dp_accounting.PoissonSampledDpEvent(
            one.sampling_rate, dp_accounting.GaussianDpEvent(one.noise_multiplier)
        )
        for _ in range(one.steps):
            accountant.compose(step)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("rate", "noise", "steps"), SETTINGS)
@pytest.mark.slow
def test_it_is_that_of_the_library_called_step_by_step(rate, noise, steps):
    found = accounting.epsilon([Mechanism(rate, noise, steps)], 1e-5)
    assert found == pytest.approx(by_hand(pld.PLDAccountant(), [Mechanism(rate, noise, steps)], 1e-5), rel=0.01)


@pytest.mark.slow
def test_three_rounds_compose_and_no_looser_accountant_says_less():
    rounds = [Mechanism(0.05, 1.1, 3), Mechanism(0.05, 1.3, 3), Mechanism(0.08, 2.0, 5)]
    found = accounting.epsilon(rounds, 1e-5)
    assert found == pytest.approx(by_hand(pld.PLDAccountant(), rounds, 1e-5), rel=0.01)
    # Rényi differential privacy gives an upper bound, here within a half.
    assert found <= by_hand(rdp.RdpAccountant(), rounds, 1e-5) <= 1.5 * found


@pytest.mark.slow
@pytest.mark.parametrize(("target", "rate", "steps"), [(1.0, 0.05, 60), (8.0, 0.05, 60), (3.0, 1.0, 5)])
def test_the_noise_for_an_epsilon_keeps_to_it_and_wastes_little(target, rate, steps):
    noise = accounting.noise_for(target, 1e-5, rate, steps)
    found = accounting.epsilon([Mechanism(rate, noise, steps)], 1e-5)
    assert 0.98 * target <= found <= target


@pytest.mark.slow
def test_an_epsilon_that_promises_nothing_is_refused():
    with pytest.raises(InputError, match="--dp-epsilon 1e\\+06"):
        accounting.noise_for(1e6, 1e-5, 0.05, 3)
