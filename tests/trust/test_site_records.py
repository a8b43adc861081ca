"""What hospitals send as single files, comparisons and scores: signed as contributions are, and so checked."""

import json
import shutil
from dataclasses import replace
from functools import reduce

import pytest
from helpers import factories
from helpers.html_tree import parse, section

from fedmed_cli.adapters import archive
from fedmed_cli.cli.app import main
from fedmed_cli.records import signatures
from fedmed_cli.records.comparison import Comparison, Score
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.scores import Scores, SiteScore
from fedmed_cli.workspace import Workspace


def comparison(plan, site, loss=2.0):
    score = Score(loss, 7.4, 0.1, 40, 40, 400, None, None)
    better = replace(score, loss=loss / 2, against_base=Interval(-loss / 2, -loss / 2 - 0.1, -loss / 2 + 0.1))
    return Comparison(
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        examples=f"data/{site}/test.jsonl",
        examples_digest=(site * 64).encode().hex()[:64],
        num_resamples=2000,
        seed=0,
        adapters={"base": None, "global": "ab" * 32},
        scores={"base": {"overall": score}, "global": {"overall": better}},
        round=1,
        site=site,
    )


def score_record(workspace, plan, site):
    parent = archive.starting_adapter(workspace, plan, 1).digest
    gains = {"cd" * 32: SiteScore(0.1, 0.01)}
    return Scores(site, 1, plan.digest, plan.base.fingerprint, parent, "0" * 64, 10, 10, gains)


@pytest.fixture(scope="session")
def received(tmp_path_factory):
    """A coordinator's workspace of a plan that pins all keys, with what three hospitals sent, signed."""
    plan = factories.make_plan()
    workspace = factories.make_workspace(tmp_path_factory.mktemp("sent") / "work", plan)
    for site in factories.SITES:
        for path, record in (
            (workspace.reports / f"compare-{site}.json", comparison(plan, site)),
            (workspace.scores / f"{site}.json", score_record(workspace, plan, site)),
        ):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(record.to_bytes())
            sign(path, site)
    return workspace.root


@pytest.fixture
def workspace(received, tmp_path, coordinators_key):
    return Workspace(shutil.copytree(received, tmp_path / "work"))


def sign(path, name):
    path.with_name(f"{path.name}.sig").write_bytes(signatures.sign(factories.SIGNERS[name], path.read_bytes()))


def unsign(path):
    path.with_name(f"{path.name}.sig").unlink()


def sign_as_another(path):
    sign(path, "stranger")


def sign_as_another_site(path):
    sign(path, "A")


def forge(path):
    """Better numbers under the signature of the true ones."""
    value = json.loads(path.read_text())
    if "scores" in value:
        value["scores"]["global"]["overall"]["loss"] = 0.0001
    else:
        value["gains"]["cd" * 32]["gain"] = 9.0
    path.write_text(json.dumps(value))


WRONG = {
    "unsigned": (unsign, "is not signed, but the plan pins a key for site B: {}.sig is missing"),
    "another key": (sign_as_another, "the plan expects site B's key"),
    "another site's key": (sign_as_another_site, "the plan expects site B's key"),
    "changed after signing": (forge, "the signature does not hold for {}"),
}
READERS = {
    "merge": ("reports/compare-B.json", "compare merge reports/compare-A.json reports/compare-B.json"),
    "crosseval": ("scores/B.json", "aggregate --weights crosseval"),
    "report of a comparison": ("reports/compare-B.json", "report"),
    "report of scores": ("scores/B.json", "report"),
    "verify a comparison": ("reports/compare-B.json", "verify"),
    "verify scores": ("scores/B.json", "verify"),
}


def argv(workspace, command):
    words = command.split()
    return [str(workspace.root / word) if word.startswith("reports/") else word for word in words]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.slow
def test_with_a_pinned_key_nothing_else_is_taken(workspace, fails, reader, wrong):
    name, command = READERS[reader]
    path = workspace.root / name
    spoil, message = WRONG[wrong]
    spoil(path)
    assert message.format(path.name) in fails(7, *argv(workspace, command), "-C", workspace.root)
    assert not (workspace.reports / "matrix.json").exists()
    assert workspace.newest_round() == 0


@pytest.mark.parametrize("command", ["compare merge reports/compare-A.json reports/compare-B.json", "report", "verify"])
@pytest.mark.slow
def test_what_is_signed_as_the_plan_says_is_taken(workspace, command, capsys):
    assert main([*argv(workspace, command), "-C", str(workspace.root), "--require-signatures"]) == 0
    assert "nothing proves" not in capsys.readouterr().err


def test_signed_scores_are_read(workspace, fails):
    message = fails(4, "aggregate", "--weights", "crosseval", "-C", workspace.root)
    assert message == "crosseval needs at least 4 contributions, found 3"  # the scores were taken


def test_scores_of_another_round_are_skipped_and_named(workspace, capsys):
    path = workspace.scores / "B.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"round": 2}))
    sign(path, "B")
    assert main(["aggregate", "--weights", "crosseval", "-C", str(workspace.root)]) == 4
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert skipped == [f"{path}: skipped, it is of round 2 or of another plan"]


def without_key_of_b(workspace):
    plan = workspace.read_plan()
    plan = factories.with_keys(plan, {name: key for name, key in plan.sites.keys.items() if name != "B"})
    factories.write_plan(workspace, plan)
    workspace.remember_pins(plan)  # as 'fedmed keys accept' does
    for path in (workspace.reports / "compare-B.json", workspace.scores / "B.json"):
        unsign(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.slow
def test_without_a_pinned_key_it_is_said_or_refused_on_request(workspace, fails, capsys, reader):
    name, command = READERS[reader]
    without_key_of_b(workspace)
    code = main([*argv(workspace, command), "-C", str(workspace.root)])
    err = " ".join(capsys.readouterr().err.split())
    assert code == (4 if reader == "crosseval" else 0), err
    assert f"{name}: is not signed: nothing proves that it comes from site B" in err
    shutil.rmtree(workspace.contribution("B"))  # and all else of site B, so that this record is what is refused
    for other in {"reports/compare-B.json", "scores/B.json"} - {name}:
        (workspace.root / other).unlink()
    message = fails(7, *argv(workspace, command), "--require-signatures", "-C", workspace.root)
    assert f"{name}: is not signed, and --require-signatures is given" in message


@pytest.mark.slow
def test_the_report_leaves_a_forged_comparison_out_and_names_it(workspace, fails):
    forge(workspace.reports / "compare-B.json")
    fails(7, "report", "-C", workspace.root)
    page = parse((workspace.reports / "report.html").read_text())
    assert "Left out: reports/compare-B.json.sig: the signature does not hold" in section(page, "overview").text
    shown = section(page, "comparison").text
    assert "Measured inside hospital A" in shown
    assert "Measured inside hospital B" not in shown
    assert "0.0001" not in page.text


@pytest.mark.slow
def test_the_report_says_what_nothing_proves(workspace):
    without_key_of_b(workspace)
    assert main(["report", "-q", "-C", str(workspace.root)]) == 0
    page = parse((workspace.reports / "report.html").read_text())
    note = "reports/compare-B.json: is not signed: nothing proves that it comes from site B."
    assert note in section(page, "overview").text


@pytest.mark.slow
def test_a_comparison_under_another_sites_name_is_left_out(workspace):
    for name in ("compare-B.json", "compare-B.json.sig"):
        shutil.copy(workspace.reports / name.replace("B", "A"), workspace.reports / name)
    assert main(["report", "-q", "-C", str(workspace.root)]) == 0
    page = parse((workspace.reports / "report.html").read_text())
    assert "reports/compare-B.json: holds no comparison of a site of this name" in section(page, "overview").text
    assert "Measured inside hospital B" not in page.text


def test_a_signature_that_is_a_link_is_not_followed(workspace, fails):
    signature = workspace.reports / "compare-B.json.sig"
    elsewhere = signature.rename(workspace.root / "elsewhere")
    signature.symlink_to(elsewhere)
    command = "compare merge reports/compare-A.json reports/compare-B.json"
    assert "is a link" in fails(3, *argv(workspace, command), "-C", workspace.root)


def test_only_what_leaves_a_hospital_is_signed(workspace, fails):
    assert "--key goes with --site" in fails(2, "compare", "--key", "x", "-C", workspace.root)
    message = fails(7, "compare", "--site", "A", "-C", workspace.root)  # the key here is the coordinator's
    assert "the plan pins the key" in message
    assert "the plan pins the key" in fails(7, "compare", "score", "--site", "A", "-C", workspace.root)


@pytest.mark.slow
def test_compare_and_score_sign_what_they_write_and_leave_no_older_signature(trained_workspace, tiny_base, tmp_path):
    root, site = str(trained_workspace.root), "A"
    lines = (trained_workspace.data / "test.jsonl").read_text().splitlines(keepends=True)
    (trained_workspace.site_data(site) / "test.jsonl").write_text("".join(lines[:4]))
    key = str(factories.write_key(tmp_path / "key", factories.SIGNERS["A"]))
    measure = ["compare", "-q", "--no-answers", "--site", site, "-C", root, "--base", str(tiny_base)]
    score = ["compare", "score", "-q", "--site", site, "-C", root, "--base", str(tiny_base)]
    for command, path in (
        (measure, trained_workspace.reports / "compare-A.json"),
        (score, trained_workspace.scores / "A.json"),
    ):
        signature = path.with_name(f"{path.name}.sig")
        assert main([*command, "--key", key]) == 0
        assert signatures.verify(path.read_bytes(), signature.read_bytes(), "x") == factories.SIGNERS["A"].public
        assert main(command) == 0
        assert path.exists()
        assert not signature.exists()


HUGE = {
    "compare-{}.json": ("scores.global.overall.loss", "compare merge reports/compare-A.json reports/compare-B.json"),
    "{}.json": (f"gains.{'cd' * 32}.gain", "aggregate --weights crosseval"),
}


@pytest.mark.parametrize("name", HUGE)
def test_numbers_whose_sum_would_overflow_are_refused(workspace, fails, name):
    field, command = HUGE[name]
    for site in factories.SITES:
        path = next(workspace.root.glob(f"*/{name.format(site)}"))
        value = json.loads(path.read_text())
        *parents, last = field.split(".")
        reduce(dict.__getitem__, parents, value)[last] = 1e308
        path.write_text(json.dumps(value))
        sign(path, site)
    message = fails(3, *argv(workspace, command), "-C", workspace.root)
    assert f"{field} must be at most 1e+100 in size, found 1e+308" in message


TABLES = {
    "columns.c": lambda score: {"columns": {"c": {f"v{n}": {f"a{n}": score} for n in range(1000)}}},
    "scores": lambda score: {"scores": {f"a{n}": {"overall": score, f"s{n}": score} for n in range(500)}},
}


@pytest.mark.parametrize("what", TABLES)
@pytest.mark.parametrize("command", ["compare merge reports/compare-A.json reports/compare-B.json", "report"])
@pytest.mark.slow
def test_a_table_far_larger_than_what_stands_in_it_is_refused(workspace, fails, command, what):
    path = workspace.reports / "compare-B.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | TABLES[what](value["scores"]["base"]["overall"])))
    sign(path, "B")
    message = f"{what}: expected a table of at most 20,000 cells"
    if command == "report":
        assert main(["report", "-C", str(workspace.root)]) == 0
        assert message in (workspace.reports / "report.html").read_text()
    else:
        assert message in fails(3, *argv(workspace, command), "-C", workspace.root)


@pytest.mark.slow
def test_a_waiting_contribution_is_reported_only_with_its_signature(workspace, fails):
    record = workspace.contribution("B") / "contribution.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"round": 999_999}))
    assert "the signature does not hold for contribution.json" in fails(7, "report", "-C", workspace.root)
    page = (workspace.reports / "report.html").read_text()
    assert "999999" not in page
    assert "999,999" not in page
    unsign(record)
    fails(7, "report", "-C", workspace.root)
    assert "999999" not in (workspace.reports / "report.html").read_text()


@pytest.mark.slow
def test_a_matrix_that_nobody_could_read_again_is_not_written(workspace, fails):
    for site in "AB":
        path = workspace.reports / f"compare-{site}.json"
        value = json.loads(path.read_text())
        names = [f"a{number}" for number in range(2000)]
        value["adapters"] |= dict.fromkeys(names, "cd" * 32)
        value["scores"] |= dict.fromkeys(names, value["scores"]["base"])
        path.write_text(json.dumps(value))
        sign(path, site)
    command = "compare merge reports/compare-A.json reports/compare-B.json"
    message = fails(3, *argv(workspace, command), "-C", workspace.root)
    assert "this matrix would have" in message
    assert not (workspace.reports / "matrix.json").exists()


@pytest.mark.parametrize("command", ["compare merge reports/compare-A.json reports/compare-B.json", "report"])
@pytest.mark.slow
def test_a_difference_of_0_beside_its_interval_is_shown(workspace, command, capsys):
    for site in factories.SITES:
        path = workspace.reports / f"compare-{site}.json"
        value = json.loads(path.read_text())
        value["scores"]["global"]["overall"]["against_base"] = {"mean": 0, "low": 0.1, "high": 0.2}
        path.write_text(json.dumps(value))
        sign(path, site)
    assert main([*argv(workspace, command), "-C", str(workspace.root)]) == 0
    out = capsys.readouterr().out
    shown = (workspace.reports / "report.html").read_text() if command == "report" else out
    assert "+0.0000 [+0.1000, +0.2000]" in shown


@pytest.mark.slow
def test_a_round_that_no_federation_reaches_is_refused_and_not_counted_to(workspace):
    """The figure of rounds would take each number up to it."""
    path = workspace.reports / "compare-B.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"round": 2**62}))
    sign(path, "B")
    assert main(["report", "-q", "-C", str(workspace.root)]) == 0
    message = "compare-B.json: round must be from 1 to 999,999"
    text = (workspace.reports / "report.html").read_text()
    assert message in text or message.replace(",", "") in text
