"""A coordinator that signs a record that is not true of its contributions: verify names the lie."""

import json
import shutil

import pytest
from helpers import factories
from test_verify import reseal_global

from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.workspace import Workspace


@pytest.fixture(scope="session")
def clipped_rounds(tmp_path_factory):
    """Two signed rounds; with this clip, all sites are clipped."""
    root = tmp_path_factory.mktemp("lies") / "work"
    return factories.make_workspace(root, factories.make_plan(), 2, settings=AggregationSettings(clip=0.5)).root


@pytest.fixture
def workspace(clipped_rounds, tmp_path):
    return Workspace(shutil.copytree(clipped_rounds, tmp_path / "work"))


def tell(workspace, site=None, evidence=(), lists=(), **decision):
    """Change what the newest record says, of a site or of the round, and sign it."""
    folder = workspace.global_adapter(2)
    sites = json.loads((folder / "aggregate.json").read_text())["sites"]
    if site is not None:
        sites[site] |= decision
        sites[site]["evidence"] |= dict(evidence)
    reseal_global(folder, sites=sites, **dict(lists))


def decisions(workspace):
    return json.loads((workspace.global_adapter(2) / "aggregate.json").read_text())["sites"]


# What contradicts itself is refused by whoever reads the record.
CONTRADICTIONS = {
    "rejected, but it counts": ({"site": "B", "verdict": "rejected"}, "weight must be 0 where it is rejected"),
    "no weight, but accepted": (
        {"site": "B", "weight": 0.0},
        "sites.B: weight must be 0 where it is rejected, found 0.0",
    ),
    "excluded, but it counts": ({"lists": {"excluded": ["B"]}}, "site B is named by sites and by excluded"),
    "missing, but it counts": ({"lists": {"missing": ["C"]}}, "site C is named by sites and by missing"),
    "weights of 2 and more": ({"site": "B", "weight": 2.0}, "the weights of all sites must add up to 1, found 2.6"),
    "a verdict that is not its factor": (
        {"site": "A", "clip_factor": 0.01, "verdict": "accepted"},
        "sites.A: clip_factor must be below 1 where it is clipped, found 0.01 and 'accepted'",
    ),
}


@pytest.mark.parametrize("lie", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused(lie, workspace, fails):
    change, message = CONTRADICTIONS[lie]
    tell(workspace, **change)
    for argv in (["verify"], ["verify", workspace.global_adapter(2)], ["chat", "hello"]):
        assert message in fails(3, *argv, "-C", workspace.root)


# What can be computed from the contributions is.
LIES = {
    "other examples": ({"num_examples": 101}, "num_examples of site B is 101, its contributions give 100"),
    "other tokens": ({"num_tokens": 1}, "num_tokens of site B is 1, its contributions give 5000"),
    "a gain that it did not report": (
        {"reported_gain": 0.5},
        "reported_gain of site B is 0.5, its contributions give None",
    ),
    "no update": ({"update_norm": 0.0}, "update_norm of site B is 0, its contributions give"),
    "other angles": ({"cosines": {"A": 1.0, "C": 0.0}}, "cosines.A of site B is 1, its contributions give"),
    "no angles": ({"cosines": {}}, "the sites in cosines of site B is none, its contributions give A, C"),
    "a copy that it is not": ({"copies": ["C"]}, "copies of site B is C, its contributions give none"),
}


@pytest.mark.parametrize("lie", LIES)
def test_evidence_that_is_not_that_of_the_contributions_is_named(lie, workspace, fails):
    change, message = LIES[lie]
    tell(workspace, "B", evidence=change)
    assert main(["verify", "-q", "-C", str(workspace.root)]) == 0
    assert message in fails(7, "verify", "--recompute", "-C", workspace.root)


def test_clip_factors_that_the_norms_do_not_give_are_named(workspace, fails):
    """Weights and clip factors are changed so that their products, and so the adapter, stay the same."""
    sites = decisions(workspace)
    for site, change in (("A", 0.01), ("B", -0.01)):
        one = sites[site]
        one["clip_factor"] *= one["weight"] / (one["weight"] + change)
        one["weight"] += change
    reseal_global(workspace.global_adapter(2), sites=sites)
    assert main(["verify", "-q", "-C", str(workspace.root)]) == 0
    assert "clip_factor of site A is 0." in fails(7, "verify", "--recompute", "-C", workspace.root)


def test_a_truncation_that_the_sum_does_not_give_is_named(workspace, fails):
    folder = workspace.global_adapter(2)
    truncation = json.loads((folder / "aggregate.json").read_text())["truncation"]
    reseal_global(folder, truncation=truncation | {"overall": 0.0})
    assert "truncation.overall is 0, its contributions give" in fails(7, "verify", "--recompute", "-C", workspace.root)


def test_what_nobody_else_can_compute_is_listed_as_claims(workspace, capsys):
    assert main(["verify", "--recompute", "--json", "-C", str(workspace.root)]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert {"prior", "score", "gain", "left_out_gain", "examination", "reasons", "missing", "excluded"} <= set(claims)
    assert not {"weight", "update_norm", "cosines", "copies", "clip_factor", "num_tokens", "truncation"} & set(claims)
    assert main(["verify", "--recompute", "-C", str(workspace.root)]) == 0
    assert "cannot be recomputed and rests on the coordinator's word: prior, " in capsys.readouterr().out
    assert main(["verify", "--json", "-C", str(workspace.root)]) == 0
    assert json.loads(capsys.readouterr().out)["claims"] == []
