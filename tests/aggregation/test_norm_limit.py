"""The norm clip: no update drowns the others, whoever sends it and however many there are."""

import math
from dataclasses import replace

import pytest
from helpers import factories
from hypothesis import given
from hypothesis import strategies as st

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import plan_adapter
from fedmed_cli.aggregation.evidence import LARGEST_RATIO, norm_limit
from fedmed_cli.cli.app import main
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.plan import Sites
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_folder

NORM = st.floats(1e-6, 1e12)
CLIP = 1.5


@given(st.lists(NORM, min_size=3, max_size=12), st.data())
def test_fewer_than_half_and_half_of_an_even_number_cannot_lift_the_limit(norms, data):
    """With at most half of the sites lying, an update counts with at most `clip` times the longest honest norm."""
    num_liars = data.draw(st.integers(0, len(norms) // 2))
    lies = data.draw(st.lists(st.floats(0, 1e15), min_size=num_liars, max_size=num_liars))
    honest = norms[num_liars:]
    assert norm_limit([*lies, *honest], CLIP) <= CLIP * max(honest) * (1 + 1e-12)


@given(NORM, st.floats(1e-6, 1e15))
def test_of_two_neither_drowns_the_other(honest, lie):
    limit = norm_limit([honest, lie], CLIP)
    assert min(lie, limit) <= LARGEST_RATIO * honest * (1 + 1e-12)
    assert min(honest, limit) <= LARGEST_RATIO * lie * (1 + 1e-12)


def test_without_a_clip_and_for_one_site_there_is_no_limit():
    assert norm_limit([1.0, 1e9, 3.0], None) == math.inf
    assert norm_limit([5.0], CLIP) == math.inf


@pytest.mark.parametrize("sites", [2, 4])
def test_a_huge_update_is_shortened_said_and_recomputed(sites, tmp_path, monkeypatch):
    """Half of the sites send values of 10,000: their part of the result is bounded, and verify follows."""
    names = "ABCD"[:sites]
    plan = replace(factories.make_plan(signed=False), sites=Sites(tuple(names), sites))
    workspace = Workspace(tmp_path / "work")
    workspace.root.mkdir()
    workspace.plan_path.write_bytes(plan.to_bytes())
    start = archive.starting_adapter(workspace, plan, 1)
    real = factories.trained

    def huge(plan, start, seed):
        factors = real(plan, start, seed).factors
        return plan_adapter(plan, {name: (a * 1e4, b * 1e4) for name, (a, b) in factors.items()})

    for name in names:
        monkeypatch.setattr(factories, "trained", real if name in names[: sites // 2] else huge)
        write_folder(workspace.contribution(name), factories.contribution(plan, name, start))
    assert main(["aggregate", "-C", str(workspace.root), "--weights", "uniform"]) == 0
    record = Aggregate.read(workspace.global_adapter(1) / "aggregate.json")
    honest = max(record.sites[name].evidence.update_norm for name in names[: sites // 2])
    most = LARGEST_RATIO if sites == 2 else CLIP
    for name in names[sites // 2 :]:
        one = record.sites[name]
        assert one.evidence.update_norm > 1000 * honest
        assert one.evidence.update_norm * one.clip_factor <= most * honest * 1.001
        assert "shortened to" in " ".join(one.reasons)
    assert main(["verify", "--recompute", "-C", str(workspace.root)]) == 0
