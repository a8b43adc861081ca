"""What share of an upper bound's gain the global adapter reaches."""

import numpy as np
import pytest

from fedmed_cli.evaluation.compare import Paired
from fedmed_cli.intervals import Losses

GROUPS = [str(i) for i in range(40)]
MEANS = {"base": 2.0, "alone-A": 1.7, "alone-B": 1.5, "global": 1.2, "pooled": 1.0, "pooled-parallel": 1.4}


def paired(means):
    tokens = np.full(40, 10)
    bumps = np.random.default_rng(0).normal(0, 0.05, 40)  # an example that is hard for one is hard for all
    return Paired({name: Losses((mean + bumps) * tokens, tokens) for name, mean in means.items()}, GROUPS)


def test_gains_are_counted_from_the_base_the_best_hospital_alone_and_their_mean():
    found = paired(MEANS).recovered(["alone-A", "alone-B"])
    assert list(found) == ["pooled", "pooled-parallel"]
    shares = found["pooled"]
    assert shares.base.mean == pytest.approx(0.8)
    assert shares.best_alone.mean == pytest.approx(0.6)
    assert shares.mean_alone.mean == pytest.approx(2 / 3)
    assert found["pooled-parallel"].base.mean == pytest.approx(4 / 3)


def test_what_was_not_measured_or_is_no_gain_has_no_share():
    assert paired({**MEANS, "pooled": 1.6}).recovered(["alone-B"])["pooled"].best_alone is None
    found = paired({name: MEANS[name] for name in ("base", "global", "pooled")}).recovered([])
    assert found["pooled"].best_alone is found["pooled"].mean_alone is None
    assert paired({name: MEANS[name] for name in ("base", "pooled")}).recovered([]) == {}
