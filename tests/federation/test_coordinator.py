"""A round's contributions: each folder is read once, and no two of them are in memory together."""

import json
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest
from helpers import factories

from fedmed_cli.adapters import archive, gate_steps
from fedmed_cli.adapters.adapter import WEIGHTS_NAME
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.data import coordinator_examples
from fedmed_cli.federation import coordinator
from fedmed_cli.records.plan import Sites
from fedmed_cli.workspace.durable import write_folder


@pytest.fixture
def weights_read(monkeypatch):
    """How often the weights of each folder were read, by the folder's name."""
    reads = Counter()
    real = gate_steps.read_file

    def counting(path, *args, **named):
        if path.name == WEIGHTS_NAME:
            reads[path.parent.name] += 1
        return real(path, *args, **named)

    monkeypatch.setattr(gate_steps, "read_file", counting)
    return reads


@pytest.mark.parametrize("options", [[], ["--weights", "tokens"], ["--output", "again"], ["--dry-run"]], ids=str)
@pytest.mark.slow
def test_aggregate_reads_each_contribution_once(options, trained_workspace, tiny_base, weights_read, monkeypatch):
    monkeypatch.chdir(trained_workspace.root)
    assert main(["aggregate", "-q", "--base", str(tiny_base), *options]) == 0
    assert weights_read == {"A": 1, "B": 1, "C": 1}


@pytest.mark.slow
def test_round_reads_each_contribution_once_also_one_that_was_there(trained_workspace, tiny_base, weights_read):
    assert main(["round", "-q", "--base", str(tiny_base), "-C", str(trained_workspace.root)]) == 0
    assert {name: weights_read[name] for name in "ABC"} == {"A": 1, "B": 1, "C": 1}


@pytest.mark.slow
def test_more_sites_take_no_more_memory(tmp_path):
    """Eight sites need less than half a contribution more than four do: one module of each is in memory."""
    peaks, size = {}, 0
    for count in (4, 8):
        names = tuple(f"H{number}" for number in range(count))
        plan = replace(factories.make_plan(signed=False, hidden=1000, layers=40), sites=Sites(names, count))
        workspace = factories.make_workspace(tmp_path / str(count), plan, mailbox=False)
        start = factories.archive.starting_adapter(workspace, plan, 1)
        for name in names:
            write_folder(workspace.contribution(name), factories.contribution(plan, name, start))
        paths = [workspace.contribution(name) for name in names]
        size = (paths[0] / WEIGHTS_NAME).stat().st_size
        tracemalloc.start()
        coordinator.aggregate(workspace, paths, AggregationSettings())
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[8] - peaks[4] < size / 2, (peaks, size)


def test_a_step_at_its_bound_is_said(tmp_path, monkeypatch):
    """Two updates that nearly cancel: FedExP would take a step of about 100."""
    plan = replace(factories.make_plan(signed=False), sites=Sites(("A", "B"), 2))
    workspace = factories.make_workspace(tmp_path, plan, mailbox=False)
    start = factories.archive.starting_adapter(workspace, plan, 1)
    there = factories.trained(plan, start, 1)
    back = COMBINE["svd"](plan, start, [there], [-0.99], None)[0]
    for site, adapter in (("A", there), ("B", back)):
        monkeypatch.setattr(factories, "trained", lambda *_, made=adapter: made)
        write_folder(workspace.contribution(site), factories.contribution(plan, site, start))
    said = []
    paths = [workspace.contribution(site) for site in "AB"]
    settings = AggregationSettings(weights="uniform", server_lr=None)
    result = coordinator.aggregate(workspace, paths, settings, say=said.append)
    assert result.record.server_lr == 10
    assert "the server's step is 10: no longer one is taken" in said


@pytest.mark.slow
def test_one_group_decides_nothing(trained_workspace, tiny_base, fails, capsys):
    path = trained_workspace.data / coordinator_examples.EXAMPLES_NAME
    decide, report = (coordinator_examples.half(trained_workspace, use) for use in ("decide", "report"))
    lines = {json.loads(line)["id"]: line for line in path.read_text().splitlines()}
    path.write_text("".join(lines[row.id] + "\n" for row in (*decide[:1], *report)))
    said = fails(3, "aggregate", "-C", trained_workspace.root, "--base", tiny_base, "--weights", "agentic")
    assert "data/coordinator.jsonl: the examples to decide with are of one group" in said
    assert "weights by tokens" not in said
    assert main(["aggregate", "-C", str(trained_workspace.root)]) == 0
    assert "are of one group, which decides nothing: weights by tokens" in capsys.readouterr().err
    assert archive.archived_global(trained_workspace, trained_workspace.read_plan(), 1).record.weights == "tokens"
