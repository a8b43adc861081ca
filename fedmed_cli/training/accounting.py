"""Epsilon for trainings by DP-SGD: Google's dp-accounting, which composes privacy loss distributions."""

from __future__ import annotations

import functools
import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedmed_cli.errors import InputError
from fedmed_cli.records.privacy import Mechanism

NEIGHBOURS = "add or remove one unit"


@functools.cache
def _library() -> Any:
    import dp_accounting
    import dp_accounting.pld

    return dp_accounting


def accountant_name() -> str:
    """The accountant with its version, as records state it."""
    _library()
    return f"PLD of dp-accounting {importlib.metadata.version('dp-accounting')}, {NEIGHBOURS}"


def _event(mechanism: Mechanism) -> Any:
    dp = _library()
    step = dp.PoissonSampledDpEvent(mechanism.sampling_rate, dp.GaussianDpEvent(mechanism.noise_multiplier))
    return dp.SelfComposedDpEvent(step, mechanism.steps)


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The epsilon of all these trainings on the same records together, at this delta."""
    steps: Counter[tuple[float, float]] = Counter()  # equal steps are composed at once, which is as exact and faster
    for one in mechanisms:
        steps[one.sampling_rate, one.noise_multiplier] += one.steps
    accountant = _library().pld.PLDAccountant()
    for (rate, noise), count in steps.items():
        accountant.compose(_event(Mechanism(rate, noise, count)))
    return float(accountant.get_epsilon(delta))


def noise_for(target: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise multiplier (to 0.1 %) with which a training has at most `target` as its epsilon."""
    dp = _library()
    try:
        found = dp.calibrate_dp_mechanism(
            dp.pld.PLDAccountant,
            lambda noise: _event(Mechanism(sampling_rate, noise, steps)),
            target,
            delta,
            dp.LowerEndpointAndGuess(0.3, 1.0),  # below 0.3 the accountant takes minutes, and nothing is promised
            tol=1e-3,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--dp-epsilon {target:g}: no noise gives it ({type(error).__name__})") from None
    return float(found)
