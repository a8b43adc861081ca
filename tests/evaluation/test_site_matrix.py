"""`fedmed compare merge`: the hospitals' numbers in one matrix, and what may not be merged."""

import json
import shutil

import pytest
from helpers.processes import run

from fedmed_cli.cli.app import main
from fedmed_cli.records.comparison import Comparison, Matrix

pytestmark = [pytest.mark.usefixtures("float32"), pytest.mark.slow]


@pytest.fixture(scope="module")
def sent(round_once, tiny_base, tmp_path_factory):
    """Three hospitals' files: each measured the same adapters on its own part of the test examples."""
    root = shutil.copytree(round_once, tmp_path_factory.mktemp("hospitals") / "work")
    lines = (root / "data/test.jsonl").read_text().splitlines(keepends=True)
    for site in "ABC":
        own = [line for line in lines if json.loads(line)["fedmed_site"] == site]
        (root / f"data/{site}/test.jsonl").write_text("".join(own))
        argv = ["compare", "-q", "--no-answers", "--site", site, "-C", str(root), "--base", str(tiny_base)]
        assert main(argv) == 0
    assert main(["compare", "-q", "--no-answers", "-C", str(root), "--base", str(tiny_base)]) == 0
    return root


@pytest.fixture
def workspace(sent, tmp_path):
    return shutil.copytree(sent, tmp_path / "work")


def files(root, sites="ABC"):
    return [str(root / f"reports/compare-{site}.json") for site in sites]


def test_the_matrix_is_what_one_machine_measures_on_all_parts(workspace, capsys):
    assert main(["compare", "merge", "-C", str(workspace), *files(workspace)]) == 0
    out = capsys.readouterr().out
    matrix = Matrix.read(workspace / "reports/matrix.json")
    whole = Comparison.read(workspace / "reports/compare.json")
    assert matrix.adapters == whole.adapters
    assert set(matrix.sites) == set("ABC")
    assert matrix.round == 1
    for site, cell in matrix.sites.items():
        for name, score in cell.scores.items():
            assert score.loss == pytest.approx(whole.scores[name][site].loss, abs=1e-5)
            assert score.num_examples == whole.scores[name][site].num_examples
    for name, mean in matrix.means.items():
        assert mean == pytest.approx(sum(whole.scores[name][site].loss for site in "ABC") / 3, abs=1e-5)
    assert matrix.worst_sites == whole.worst_sites
    assert f"global: site {matrix.worst_sites['global']}, " in out
    assert "Loss at each site" in out


def test_merging_loads_no_torch(workspace):
    code, _, loaded = run(workspace, "compare", "merge", "-q", "-C", workspace, *files(workspace))
    assert (code, loaded) == (0, [])


def test_a_site_that_measured_fewer_adapters_leaves_gaps(workspace, capsys):
    path = workspace / "reports/compare-B.json"
    record = json.loads(path.read_text())
    for part in (record["adapters"], record["scores"]):
        del part["C"]
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["compare", "merge", "-C", str(workspace), *files(workspace, "AB")]) == 0
    err = capsys.readouterr().err
    assert "C was measured at A only, so it has no mean" in err
    assert "no comparison from C" in err
    matrix = Matrix.read(workspace / "reports/matrix.json")
    assert "C" not in matrix.means
    assert "C" in matrix.adapters


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"plan": "ab" * 32}, 4, "is of plan abababababab…, expected"),
        ({"base_fingerprint": "cd" * 32}, 4, "is of base model cdcdcdcdcdcd…, expected"),
        ({"site": "A"}, 4, "site A appears in two files"),
        ({"site": "Z"}, 4, "site Z is not in the plan (A, B, C)"),
        ({"site": None}, 3, "was not measured by a hospital"),
        ({"site": "../x"}, 3, "site name '../x' must match"),
        ({"surprise": 1}, 3, "unknown field 'surprise'"),
        ({"scores": {}}, 3, "scores.A has no 'overall'"),
    ],
)
def test_what_does_not_belong_together_is_refused(workspace, fails, change, code, message):
    path = workspace / "reports/compare-B.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in fails(code, "compare", "merge", "-C", workspace, *files(workspace, "AB"))
    assert not (workspace / "reports/matrix.json").exists()


def test_one_name_for_two_adapters_is_refused(workspace, fails):
    path = workspace / "reports/compare-B.json"
    record = json.loads(path.read_text())
    record["adapters"]["global"] = "12" * 32
    path.write_text(json.dumps(record))
    message = fails(4, "compare", "merge", "-C", workspace, *files(workspace))
    assert "'global' is adapter" in message
    assert "121212121212… in the other" in message


def test_two_sites_with_the_same_examples_are_refused(workspace, fails):
    one, two = (json.loads((workspace / f"reports/compare-{site}.json").read_text()) for site in "AB")
    two["examples_digest"] = one["examples_digest"]
    (workspace / "reports/compare-B.json").write_text(json.dumps(two))
    assert "sites A and B measured on the same examples" in fails(
        4, "compare", "merge", "-C", workspace, *files(workspace)
    )


def test_one_file_is_not_merged(workspace, fails):
    assert "takes two files or more" in fails(2, "compare", "merge", "-C", workspace, *files(workspace, "A"))


def test_options_of_compare_are_refused_before_a_command_that_would_not_see_them(workspace, fails):
    assert "--site: goes after merge" in fails(2, "compare", "--site", "A", "merge", *files(workspace))
    assert "--workspace: goes after merge" in fails(2, "compare", "-C", workspace, "merge", *files(workspace))


def test_the_old_option_still_merges_and_names_the_command(workspace, capsys):
    capsys.readouterr()
    assert main(["compare", "--merge", "-C", str(workspace), *files(workspace)]) == 0
    out, err = capsys.readouterr()
    assert "fedmed: hint: 'fedmed compare --merge' is now 'fedmed compare merge'" in err
    assert "Loss at each site" in out
    assert (workspace / "reports/matrix.json").exists()
