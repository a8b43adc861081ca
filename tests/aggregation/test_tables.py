"""The tables of methods, robust means and weightings are the one place for each name: what derives from them."""

import json
import re
from pathlib import Path

import pytest
from helpers import factories

from fedmed_cli.adapters import gate
from fedmed_cli.aggregation.methods import COMBINE, svd
from fedmed_cli.aggregation.robust import MEANS
from fedmed_cli.aggregation.weighting import WEIGH
from fedmed_cli.cli.app import main, make_app
from fedmed_cli.records.combining import METHODS, ROBUST_MEANS, WEIGHTINGS, Method, Weighting

DOCS = (Path(__file__).parents[2] / "docs/aggregation.md").read_text(encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    for command in ("aggregate", "round"):
        make_app(command)  # is remembered with its help, which a test's own rows must not enter
    plan = factories.without_keys(factories.make_plan())
    return factories.make_workspace(tmp_path / "work", plan).root


def docs_rows():
    """The rows of docs/aggregation.md that the tables give."""
    for name, row in METHODS.items():
        starts, takes = ("yes" if flag else "no" for flag in (row.starts_round, row.takes_step))
        yield f"| `{name}` | {row.about} | {starts} | {takes} | {row.source} |"
    for name, row in WEIGHTINGS.items():
        needs = "the coordinator's examples" if row.measures else "scores/SITE.json" if row.reads_scores else "nothing"
        yield f"| `{name}` | {row.about} | {needs} | {row.fewest_sites} |"
    for name, row in ROBUST_MEANS.items():
        yield f"| `{name}` | {row.about} | {row.source or '-'} |"


def test_each_name_has_its_function():
    assert list(METHODS) == list(COMBINE)
    assert list(ROBUST_MEANS) == ["none", *MEANS]
    assert list(WEIGHTINGS) == list(WEIGH)


def test_the_docs_show_the_tables_and_no_other_row():
    rows = list(docs_rows())
    missing = [row for row in rows if row not in DOCS]
    assert not missing, "add to docs/aggregation.md:\n" + "\n".join(missing)
    assert set(re.findall(r"^\| `([a-z][a-z-]*)` \|", DOCS, re.MULTILINE)) == {*METHODS, *WEIGHTINGS, *ROBUST_MEANS}


def test_help_names_all_of_them(capsys):
    assert main(["aggregate", "--help"]) == 0
    words = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    for name, row in {**METHODS, **ROBUST_MEANS, **WEIGHTINGS}.items():
        assert f"{name} ({row.about})" in words


def test_a_new_method_is_a_function_and_a_row(root, monkeypatch, capsys, fails):
    def ties(plan, parent, adapters, coefficients, momentum=None):
        return svd(plan, parent, adapters[:1], [sum(coefficients)], momentum)

    monkeypatch.setitem(COMBINE, "ties", ties)
    monkeypatch.setitem(METHODS, "ties", Method("the first site's, for this test", "a paper", starts_round=False))
    elsewhere = root.parent / "release"
    assert main(["aggregate", "--method", "ties", "--json", "-C", str(root), "--output", str(elsewhere)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["method"] == "ties"
    assert gate.read_from_anyone(elsewhere).record.method == "ties"
    assert "no round can start from it" in fails(2, "aggregate", "--method", "ties", "-C", root)
    assert "expected one of svd, factor-mean, found 'ties'" in fails(2, "round", "--method", "ties", "-C", root)
    argv = ("aggregate", "--method", "ties", "--output", elsewhere, "-C", root, "--server-momentum", "0.5")
    assert "go with --method svd" in fails(2, *argv)
    monkeypatch.setitem(METHODS, "ties", Method("the first site's, for this test", "a paper"))
    assert main(["aggregate", "--method", "ties", "-q", "-C", str(root)]) == 0
    assert main(["verify", "--recompute", "--json", "-C", str(root)]) == 0
    checked = json.loads(capsys.readouterr().out)["checked"]
    assert [one["difference"] for one in checked if one["party"] == "coordinator"] == [0.0]


def test_a_new_weighting_is_a_function_and_a_row(root, monkeypatch, capsys, fails):
    def longest(state):
        farthest = max(state.sites.values(), key=lambda site: site.norm)
        for site in state.sites.values():
            site.weight = 0.5 if site is farthest else 0.25

    monkeypatch.setitem(WEIGH, "longest", longest)
    monkeypatch.setitem(WEIGHTINGS, "longest", Weighting("where it moved farthest", claim=None, fewest_sites=3))
    argv = ("aggregate", "--weights", "longest", "-C", str(root))
    assert main([*argv, "--json", "--dry-run"]) == 0
    weights = [site["weight"] for site in json.loads(capsys.readouterr().out)["sites"].values()]
    assert sorted(weights) == [0.25, 0.25, 0.5]
    assert "longest needs at least 3 contributions, found 2" in fails(4, *argv, "--exclude", "A")


def test_a_record_of_an_unknown_name_is_refused(root, fails):
    assert main(["aggregate", "-q", "-C", str(root)]) == 0
    path = root / "rounds/001/global/aggregate.json"
    for field, names in (("method", METHODS), ("weights", WEIGHTINGS), ("robust", ROBUST_MEANS)):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {field: "magic"}))
        assert f"{field} must be one of {', '.join(names)}, found 'magic'" in fails(3, "verify", "-C", root)
        path.write_text(json.dumps(record))
