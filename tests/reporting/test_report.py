"""`fedmed report`: one page that shows what the records say, fetches nothing, and obeys nothing foreign."""

import base64
import hashlib
import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.html_tree import parse, section, table

from fedmed_cli.cli.app import main
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.comparison import (
    ChoiceScore,
    Comparison,
    Generated,
    Matrix,
    MatrixSite,
    MultipleChoice,
    OverlapScore,
    Pooled,
    Rate,
    Score,
    Shares,
    Tally,
)
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.split import SplitRecord
from fedmed_cli.reporting import numbers, page, workspace_records
from fedmed_cli.reporting.sections.training import means_of_bins
from fedmed_cli.reporting.tables.comparison import loss_cell
from fedmed_cli.workspace import Workspace

GOLDEN = Path(__file__).parents[1] / "golden/v1"
HTML_TAGS = set(
    "html head meta title style body a header p h1 h2 h3 h4 h5 nav ol li main section div dl dt dd figure figcaption "
    "details summary table caption span thead tbody tr th td ul code article footer".split()
)
SVG_TAGS = set("svg g defs path use text clippath rect pattern".split())
SECTIONS = "overview comparison matrix weights training data plan answers bytes lineage limits".split()


@pytest.fixture
def golden(tmp_path):
    return Workspace(shutil.copytree(GOLDEN, tmp_path / "golden"))


def written(workspace, *argv):
    assert main(["report", "-q", "-C", str(workspace.root), *argv]) == 0
    return (workspace.reports / "report.html").read_text(encoding="utf-8")


def check_structure(text):
    """What holds of every report, whatever is in it."""
    root = parse(text)
    svg = {id(element) for drawing in root.all("svg") for element in drawing.all()}
    for element in root.all():
        if element.tag == "#document":
            continue
        assert element.tag in (SVG_TAGS if id(element) in svg else HTML_TAGS), element.tag
        for name, value in element.attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "style", "action", "formaction", "data", "poster", "xlink:href"), name
            if name == "href":
                assert value.startswith("#"), value
            assert "url(" not in value or re.fullmatch(r"url\(#[\w-]+\)", value), value
    policy = next(one for one in root.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy")
    style = root.all("style")[0].text
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"@import|url\(|expression|http", style)
    ids = [one.attributes["id"] for one in root.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for element in root.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
        if element.attributes.get("href", "").startswith("#"):
            assert element.attributes["href"][1:] in ids
    levels = [int(one.tag[1]) for one in root.all("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(root.all(tag)) for tag in ("main", "nav", "header", "footer")] == [1, 1, 1, 1]
    assert [one.attributes["id"] for one in root.all("section")] == SECTIONS
    for one in root.all("table"):
        assert one.all("caption")[0].text.strip()
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in one.all("th"))
        widths = {len(row.all("th", "td")) for row in one.all("tr")}
        assert len(widths) == 1, one.all("caption")[0].text
    for plot in [one for one in root.all("div") if one.attributes.get("class") == "plot"]:
        assert plot.attributes["role"] == "img"
        described = plot.attributes["aria-labelledby"].split()[1]
        assert len(next(one for one in root.all("p") if one.attributes.get("id") == described).text) > 40
        assert plot.parent.tag == "figure"
        assert plot.parent.all("details")[0].all("table")
    assert "not for clinical use" in root.all("header")[0].text
    return root


@pytest.mark.slow
def test_the_golden_workspace_gives_a_report_with_the_numbers_of_its_records(golden):
    root = check_structure(written(golden))
    record = Aggregate.read(golden.global_adapter(1) / "aggregate.json")
    rows = table(root, "Decisions of round 1")
    assert rows[0] == ["site", "verdict", "weight", "claimed", "update norm", "measured gain"]
    assert [row[:3] for row in rows[1:]] == [[s, one.verdict, f"{one.weight:.3f}"] for s, one in record.sites.items()]
    for one in record.sites.values():
        for reason in one.reasons:
            assert reason in section(root, "weights").text
    compared = Comparison.read(golden.reports / "compare.json")
    overall = {row[0]: row for row in table(root, "Overall")[1:]}
    assert set(overall) == set(compared.scores)
    assert next(iter(overall)) == "base"
    assert list(overall)[-1] == "global"
    found = compared.scores["global"]["overall"].against_base
    minus = "\N{MINUS SIGN}"
    assert overall["global"][3] == f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]".replace("-", minus)
    size = sum(path.stat().st_size for path in golden.contribution("A").parents[1].glob("rounds/001/A/*"))
    sent = next(row for row in table(root, "Folders with their records") if row[1] == "A to the coordinator")
    assert sent[2] == f"{size:,}"
    digests = dict(table(root, "Full digests")[1:])
    assert digests["round 1, global"] == record.adapter
    contribution = Contribution.read(golden.round(1) / "A/contribution.json")
    losses = [row[1] for row in table(root, "Training loss by step") if row[0].startswith("round 1,")]
    assert losses == [f"{loss:.4f}" for loss in contribution.losses]
    assert table(root, "Hospitals' scores")[1][0] == "A"
    assert "no: this report repeats" in section(root, "overview").text
    assert "Not verified" in section(root, "lineage").text


@pytest.mark.slow
def test_the_same_workspace_gives_the_same_bytes_wherever_it_lies_and_whatever_matplotlib_is_set_to(golden, tmp_path):
    import matplotlib

    first = written(golden)
    assert written(golden) == first
    other = Workspace(shutil.copytree(GOLDEN, tmp_path / "a folder of another name"))
    with matplotlib.rc_context({"font.size": 23, "svg.fonttype": "path", "axes.linewidth": 5, "xtick.major.size": 20}):
        assert written(other) == first
    assert str(tmp_path) not in first
    assert len(first) < 300_000


@pytest.mark.slow
def test_matrix_of_hospitals_is_shown_before_the_shared_test_set(golden):
    compared = Comparison.read(golden.reports / "compare.json")
    for site in "AB":
        own = replace(compared, examples=f"data/{site}/test.jsonl", site=site)
        (golden.reports / f"compare-{site}.json").write_bytes(own.to_bytes())
    root = check_structure(written(golden))
    rows = table(root, "Loss at each site")
    assert [row[0] for row in rows[1:]] == ["A", "B"]
    loss = compared.scores["global"]["overall"].loss
    assert rows[1][rows[0].index("global")].startswith(f"{loss:.4f}")
    assert "Measured inside hospital A" in section(root, "comparison").text
    assert "Site A" not in section(root, "overview").text
    (golden.reports / "compare.json").unlink()  # as in a hospital's own workspace
    root = check_structure(written(golden))
    assert "Site A, on its own test examples: " in section(root, "overview").text
    assert "There is no reports/compare.json" in section(root, "comparison").text


@pytest.mark.slow
def test_what_measured_another_global_adapter_is_not_in_the_matrix(golden):
    now = Comparison.read(golden.reports / "compare.json")
    old = replace(now, adapters=now.adapters | {"global": "7" * 64})
    (golden.reports / "compare-A.json").write_bytes(replace(now, site="A").to_bytes())
    (golden.reports / "compare-B.json").write_bytes(replace(old, site="B").to_bytes())
    root = parse(written(golden))
    assert "Left out, since they measured another global adapter or plan: B." in section(root, "matrix").text
    assert [row[0] for row in table(root, "Loss at each site")[1:]] == ["A"]
    matrix = Matrix(now.plan, now.base_fingerprint, 1, old.adapters, {}, {}, {}, {})
    (golden.reports / "matrix.json").write_bytes(matrix.to_bytes())
    assert "What was measured as global (777777777777)" in section(parse(written(golden)), "matrix").text


@pytest.mark.slow
def test_all_that_a_comparison_can_hold_is_shown(golden):
    compared = Comparison.read(golden.reports / "compare.json")
    rate = Rate(Interval(0.412, 0.39, 0.43), Interval(0.0512, 0.01, 0.09))
    alone = replace(rate, against_base=None)
    tally = {
        name: {part: replace(score, tally=Tally(7, 1, 2)) for part, score in one.items()}
        for name, one in compared.scores.items()
    }
    overlap = {name: OverlapScore(alone if name == "base" else rate, rate, 3, 4) for name in ("global", "base")}
    choice = {name: ChoiceScore(rate, rate, rate, rate if name == "global" else None, 5) for name in ("global", "base")}
    kind = {"children": {name: one["overall"] for name, one in compared.scores.items()}}
    full = replace(
        compared,
        scores=tally,
        generated=Generated(60, 31, 48, overlap),
        choices=MultipleChoice("dev.jsonl", "0" * 64, "options", 100, 2, 50, 0.25, choice),
        columns={"focus": kind},
        on_other_sites={name: Interval(-0.03, -0.05, -0.01) for name in ("A", "personal-A")},
        joined={"B": Interval(-0.02, -0.04, -0.01)},
        adapters=compared.adapters | {"pooled": "5" * 64, "personal-A": "6" * 64},
        recovered={"pooled": Shares(base=Interval(0.83, 0.7, 0.95))},
        worst_sites={"global": "B"},
        num_skipped=3,
    )
    (golden.reports / "compare.json").write_bytes(full.to_bytes())
    matrix = Matrix(
        compared.plan,
        compared.base_fingerprint,
        1,
        compared.adapters,
        {"A": MatrixSite("0" * 64, 9, 8, {name: one["overall"] for name, one in compared.scores.items()})},
        {"global": 1.25},
        {"global": "A"},
        {"A": "0" * 64},
    )
    (golden.reports / "matrix.json").write_bytes(matrix.to_bytes())
    pooled = Pooled(
        key="0" * 64,
        plan=compared.plan,
        base_fingerprint=compared.base_fingerprint,
        parent="0" * 64,
        adapter="5" * 64,
        examples_digest="0" * 64,
        num_examples=4321,
        num_trained_tokens=98765,
        num_federated_tokens=98700,
        rounds=1,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        losses=(),
    )
    (golden.reports / "pooled").mkdir()
    (golden.reports / "pooled/pooled.json").write_bytes(pooled.to_bytes())
    root = check_structure(written(golden))
    assert {row[-1] for row in table(root, "Against the global adapter")[1:]} == {"7 / 1 / 2"}
    right, gain = "41.2 [39.0, 43.0]", "+5.1 [+1.0, +9.0]"
    assert table(root, "Accuracy by the options")[1:] == [[name, right, right, gain] for name in ("base", "global")]
    assert table(root, "Accuracy by letters")[1:] == [
        ["base", right, "not measured", ""],
        ["global", right, right, "5 of 50"],
    ]
    rouge, f1 = (
        table(root, f"Overlap with the reference answers, in % with 95 % intervals: {name}")[1:]
        for name in ("ROUGE-L", "token F1")
    )
    assert [row[2:] for row in rouge] == [["", "3", "4"], [gain, "3", "4"]]
    assert [row[2:] for row in f1] == [[gain], [gain]]
    base = kind["children"]["base"]
    expected = ["children", f"{base.loss:.4f}", f"{base.num_examples} in {base.num_groups} groups"]
    row = table(root, "Loss by focus")[1]
    assert [row[0], row[1], row[-1]] == expected
    minus = "\N{MINUS SIGN}"
    own = compared.scores["A"]["A"].against_global
    expected = [
        "A",
        numbers.interval(Interval(-own.mean, -own.high, -own.low)),
        "-0.0300 [-0.0500, -0.0100]".replace("-", minus),
    ]
    assert table(root, "Global adapter minus one site's")[1] == expected
    assert table(root, "Private adapter minus")[1:] == [["personal-A", "", "+0.0300 [+0.0100, +0.0500]"]]
    assert table(root, "What a hospital uses now")[1:] == [
        ["B", "global", "-0.0200 [-0.0400, -0.0100]".replace("-", minus)]
    ]
    assert table(root, "How much of the upper bound's gain") == [["gain over", "pooled"], ["the base", "83 % [70, 95]"]]
    text = section(root, "comparison").text
    for part in (
        "global: site B",
        "3 examples were skipped",
        "right in 25.0 %",
        "4,321 examples together",
    ):
        assert part in text, part
    rows = table(root, "Loss at each site")
    assert [row[0] for row in rows[1:]] == ["A", "mean"]
    assert rows[2][rows[0].index("global")] == "1.2500"


def test_better_is_blue_worse_is_orange_and_the_shade_goes_by_size():
    def score(loss, gain):
        return Score(loss, 1.0, 0.0, 5, 5, 5, Interval(gain, gain, gain), None)

    assert loss_cell(score(1.0, -0.4), 0.4, 1.0).kind == "lowest better-4"
    assert loss_cell(score(1.2, -0.1), 0.4, 1.0).kind == "better-1"
    assert loss_cell(score(1.3, 0.2), 0.4, 1.0).kind == "worse-2"
    assert loss_cell(score(1.3, -0.001), 0.4, 1.0).kind == "better-1"
    assert loss_cell(score(1.3, 0.0), 0.0, 1.0).kind == ""
    unsure = replace(score(1.3, -0.4), against_base=Interval(-0.4, -0.9, 0.1))
    assert loss_cell(unsure, 0.4, 1.0).kind == ""


# --- partial workspaces -----------------------------------------------------------------------------


def test_a_plan_alone_gives_a_report_that_names_what_is_missing(tmp_path):
    place = Workspace(tmp_path / "new")
    assert main(["init", "--names", "A,B", "-C", str(place.root), "-q"]) == 0
    root = check_structure(written(place))
    for name, words in {
        "overview": "no global adapter has been compared",
        "comparison": "There is no reports/compare.json",
        "matrix": "There is no reports/matrix.json",
        "weights": "No round has been aggregated here yet",
        "training": "nothing has been trained yet",
        "data": "There is no data/split.json and no data/SITE/division.json",
        "answers": "There is no reports/answers.md",
        "bytes": "Nothing has been exchanged yet",
        "lineage": "There is no round here yet",
    }.items():
        shown = section(root, name)
        assert words in shown.text
        assert any(one.attributes.get("class") == "missing" for one in shown.all("p")), name
    assert root.all("svg") == []


@pytest.mark.slow
def test_a_hospitals_own_workspace_shows_its_data_and_its_contribution(trained_workspace, tmp_path):
    division = json.loads((GOLDEN / "data/division.json").read_text()) | {"site": "B"}
    home = Workspace(tmp_path / "home")
    (home.data / "B").mkdir(parents=True)
    (home.data / "B/division.json").write_text(json.dumps(division))
    shutil.copytree(trained_workspace.contribution("B"), home.contribution("B"))
    shutil.copy(trained_workspace.plan_path, home.plan_path)
    root = check_structure(written(home))
    assert table(root, "Hospitals' own files")[1][:3] == [
        "B",
        f"{sum(division[name] for name in ('train', 'validation', 'test')):,}",
        f"{division['train']:,}",
    ]
    record = Contribution.read(home.contribution("B") / "contribution.json")
    assert [row[1] for row in table(root, "Training loss by step")[1:]] == [f"{loss:.4f}" for loss in record.losses]
    assert "waiting in adapters/" in section(root, "bytes").text


@pytest.mark.slow
def test_files_that_cannot_be_read_are_named_and_the_rest_is_shown(golden, capsys):
    (golden.reports / "compare.json").write_text('{"format": "fedmed/comparison"')
    (golden.reports / "compare-x y.json").write_text("{}")
    (golden.adapters / "B.fedmed.tar").write_bytes(b"")
    (golden.round(1) / "A/contribution.json").unlink()
    with (golden.root / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    assert main(["report", "-C", str(golden.root)]) == 0
    out, err = capsys.readouterr()
    assert "wrote" in out
    root = check_structure((golden.reports / "report.html").read_text())
    faults = [one.text for one in root.all("p") if one.attributes.get("class") == "fault"]
    assert len(faults) == 4
    for name in (
        "B.fedmed.tar: is a bundle",
        "reports/compare.json: is not JSON",
        "compare-x y.json: holds no comparison",
        "metrics.jsonl: its torn",
    ):
        assert any(name in fault for fault in faults), (name, faults)
        assert name in err
    assert "A " in section(root, "lineage").text
    assert "not here" in section(root, "lineage").text
    assert len(table(root, "Decisions of round 1")) == 4


@pytest.mark.parametrize("root", ["/a/b", "a", "data", "."])
def test_paths_are_shown_from_the_workspace_on(root):
    text = f"{Path(root) / 'data/a/x.json'}: is of x/a, not of b/data/a"
    assert workspace_records.without_root(text, Workspace(Path(root))) == "data/a/x.json: is of x/a, not of b/data/a"


def test_no_plan_is_an_error(tmp_path, fails):
    assert "is not a fedmed workspace" in fails(3, "report", "-C", tmp_path)


@pytest.mark.slow
def test_without_matplotlib_the_tables_replace_plots(golden, monkeypatch, capsys):
    with_plots = table(parse(written(golden)), "Training loss by step")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "-C", str(golden.root)]) == 0
    assert "without plots" in capsys.readouterr().err
    root = check_structure((golden.reports / "report.html").read_text())
    assert root.all("svg") == []
    assert table(root, "Training loss by step") == with_plots
    assert "matplotlib is not installed" in root.text


@pytest.mark.slow
def test_another_file_is_not_overwritten_but_a_report_is(golden, tmp_path, fails):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    assert "is not a report" in fails(6, "report", "-C", golden.root, "--output", mine)
    assert mine.read_text() == "<p>mine"
    assert main(["report", "-q", "-C", str(golden.root), "--output", str(tmp_path / "new/r.html")]) == 0
    assert main(["report", "-q", "-C", str(golden.root), "--output", str(tmp_path / "new/r.html")]) == 0
    assert not (golden.reports / "report.html").exists()


# --- lineage ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verified_is_said_with_what_was_checked(round_workspace):
    root = check_structure(written(round_workspace, "--verify"))
    assert "yes: 7 adapters checked" in section(root, "overview").text
    assert len(table(root, "What was checked")) == 1 + 7
    notes = dict(table(root, "Not proved: 7 notes")[1:])
    assert notes["rounds/001/A"].startswith("is not signed")


@pytest.mark.slow
def test_a_fault_stands_in_the_report_and_is_the_exit_code(round_workspace, fails):
    weights = round_workspace.round(1) / "B/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    fails(7, "report", "--verify", "-C", round_workspace.root)
    root = check_structure((round_workspace.reports / "report.html").read_text())
    assert "Fault: rounds/001/B" in section(root, "lineage").text
    assert str(round_workspace.root) not in root.text
    assert "found, see Lineage" in section(root, "overview").text


@pytest.mark.slow
def test_records_that_do_not_follow_from_each_other_are_marked(golden):
    shutil.copytree(golden.round(1), golden.round(2))
    for path in golden.round(2).glob("*/contribution.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"round": 2}))
    path = golden.global_adapter(2) / "aggregate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"round": 2}))
    root = check_structure(written(golden))
    rows = table(root, "Rounds by the records alone")
    assert rows[2][2].endswith("which is not round 1")
    assert rows[2][3].count("its record here is another one") == 3
    marked = json.loads(path.read_text())
    before = (golden.global_adapter(1) / "aggregate.json").read_bytes()
    parent = json.loads(before)["adapter"]
    path.write_text(json.dumps(marked | {"parent": parent, "parent_record": hashlib.sha256(before).hexdigest()}))
    assert table(parse(written(golden)), "Rounds by the records alone")[2][2] == "round 1"
    path.write_text(json.dumps(marked | {"parent": parent, "parent_record": "0" * 64}))
    assert "its record was changed since" in table(parse(written(golden)), "Rounds by the records alone")[2][2]


@pytest.mark.slow
def test_a_comparison_of_an_older_global_adapter_is_said(golden):
    path = golden.reports / "compare.json"
    value = json.loads(path.read_text())
    value["adapters"]["global"] = "0" * 64
    path.write_text(json.dumps(value))
    assert "run 'fedmed compare' again" in section(parse(written(golden)), "comparison").text


# --- what is foreign --------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'><svg/onload=alert(3)>",
    "</style><style>*{display:none}</style>",
    "</title></head><body onload=alert(4)>",
    "{{ 7 * 7 }}{% raw %}",
    "[x](javascript:alert(5)) &lt;b&gt; &#60;i&#62;",
    "<!-- --><iframe src=//evil.example>",
    r"$\frac{\undefined$ and ${x^2}$",
    "\u05d0\u05d1 日本語 \U0001f600 \ufffe",
)


def poison(workspace):
    """Put every hostile text wherever a record of another hospital, or a model, may bring one."""
    path = workspace.global_adapter(1) / "aggregate.json"
    value = json.loads(path.read_text())
    for site in value["sites"].values():
        site["reasons"] += list(HOSTILE)
    value["truncation"]["modules"] |= dict.fromkeys(HOSTILE, 0.5)
    value["run"] |= {"created": HOSTILE[0], "python": HOSTILE[1]}
    path.write_text(json.dumps(value))
    for path in workspace.round(1).glob("*/contribution.json"):
        value = json.loads(path.read_text())
        value["run"] |= {"torch": HOSTILE[1], "device": HOSTILE[2], "created": HOSTILE[3]}
        path.write_text(json.dumps(value))
    path = workspace.data / "split.json"
    value = json.loads(path.read_text())
    for site in value["sites"].values():
        site["labels"] = dict.fromkeys(HOSTILE, 100)
        site["phi"] = dict.fromkeys(HOSTILE, 1)
    value |= {"column": HOSTILE[0], "group_by": HOSTILE[1], "label_column": HOSTILE[2]}
    value |= {"phi": "warn", "phi_found": dict.fromkeys(HOSTILE, 3)}
    value["bad_rows"] = {text: {"count": 2, "lines": [text]} for text in HOSTILE}
    path.write_text(json.dumps(value))
    path = workspace.reports / "compare.json"
    value = json.loads(path.read_text())
    value["examples"] = HOSTILE[1]
    scores = next(iter(value["scores"].values()))
    value["scores"] |= {text: scores | {text: scores["overall"]} for text in HOSTILE}
    value["adapters"] |= dict.fromkeys(HOSTILE)
    value["columns"] = {text: {text: {text: scores["overall"]}} for text in HOSTILE}
    value["worst_sites"] = dict.fromkeys(HOSTILE, "A")
    path.write_text(json.dumps(value))
    lines = ["# Answers side by side", ""]
    for text in HOSTILE:
        lines += ["", f"## {text}"]
        for name in HOSTILE:
            lines += ["", f"**{name}**", "", text + "\u202e\x1b[31m\x00"]
    (workspace.reports / "answers.md").write_text("\n".join(lines))
    plan = workspace.plan_path.read_text()
    for field, text in (("system", HOSTILE[0] + HOSTILE[5]), ("user", HOSTILE[1] + "{question}")):
        plan = re.sub(rf"(?m)^{field} = .*$", lambda match, line=f"{field} = {json.dumps(text)}": line, plan)
    workspace.plan_path.write_text(plan)


@pytest.mark.slow
def test_nothing_foreign_becomes_markup(golden):
    poison(golden)
    text = written(golden)
    root = check_structure(text)
    assert root.all("script", "img", "iframe", "object") == []
    assert len(root.all("style")) == 1
    assert len(root.all("body")) == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    for name in ("weights", "answers", "data", "comparison"):
        shown = section(root, name).text
        for hostile in HOSTILE:
            assert hostile in shown, (name, hostile)  # shown as what it is: text
    labels = {one.text for drawing in root.all("svg") for one in drawing.all("text")}
    assert r"$\frac{\und…" in {label[:12] for label in labels}
    shown = section(root, "plan").text
    assert HOSTILE[5] in shown
    assert "49" not in shown


@pytest.mark.slow
def test_answers_are_shown_side_by_side_unless_unwanted(golden):
    text = "# Answers\n\nprose **not a name** here\n\n## Q one?\n\n**base**\n\nyes\n\n**bold**\n\n**global**\n\n## no\n"
    # A line of a model's answer that looks like a name is an answer's own, unless it stands under the first question.
    text += "\n## Q two?\n\n**base**\n\nfirst\n\n**other**\n\nsecond\n\n**global**\n\nlast\n"
    (golden.reports / "answers.md").write_text(text)
    found = workspace_records.read_records(golden).answers
    assert found == (
        ("Q one?", {"base": "yes", "bold": "", "global": ""}),
        ("no", {}),
        ("Q two?", {"base": "first\n\n**other**\n\nsecond", "global": "last"}),
    )
    assert "Q two?" in section(parse(written(golden)), "answers").text
    unwanted = parse(written(golden, "--no-answers"))
    assert "Q two?" not in unwanted.text
    assert "Left out of this report on request" in section(unwanted, "answers").text


# --- numbers and looks ------------------------------------------------------------------------------


def test_long_curves_are_means_of_shares():
    losses = tuple(np.random.default_rng(0).uniform(1, 3, 103).tolist())
    bins = means_of_bins(losses, 5)
    assert len(bins) == 21
    np.testing.assert_allclose(bins[:-1], np.reshape(losses[:100], (20, 5)).mean(axis=1), rtol=1e-12)
    assert bins[-1] == pytest.approx(np.mean(losses[100:]), rel=1e-12)


@pytest.mark.slow
def test_what_was_kept_and_agreed_is_said(golden):
    path = golden.round(1) / "A/contribution.json"
    path.write_bytes(replace(Contribution.read(path), kept_step=1).to_bytes())
    text = golden.plan_path.read_text()
    golden.plan_path.write_text(text.replace("[training]", "[training]\nfedprox_mu = 0.25\nlr_scheduler_rounds = 4"))
    root = check_structure(written(golden))
    steps = len(Contribution.read(path).losses)
    assert f"A in round 1 step 1 of {steps}" in section(root, "training").text
    assert "mu = 0.25" in section(root, "plan").text
    assert "over 4 rounds" in section(root, "plan").text


@pytest.mark.slow
def test_many_sites_and_long_names_give_a_report(golden):
    path = golden.data / "split.json"
    record = SplitRecord.read(path)
    counts = next(iter(record.sites.values()))
    path.write_bytes(replace(record, sites={f"Hospital-{number:027d}": counts for number in range(200)}).to_bytes())
    root = check_structure(written(golden))
    assert "200 rows are too many" in section(root, "data").text
    assert len(table(root, "Examples of each site by set")) == 201


def luminance(colour):
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    """WCAG 2.2's contrast ratio."""
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes():
    """The colours of page.css by theme: light, dark, print."""
    style = (page.HERE / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 3
    base = {}
    for name, block in zip(("light", "dark", "print"), blocks, strict=True):
        found = {key: tuple(bytes.fromhex(value)) for key, value in re.findall(r"--(\w+): #([0-9a-f]{6})", block)}
        found |= {key: tuple(map(int, value.split())) for key, value in re.findall(r"--(\w+): (\d+ \d+ \d+)", block)}
        base = base or found
        yield name, base | found


@pytest.mark.parametrize(("name", "colours"), list(themes()))
def test_text_and_lines_have_the_contrast_of_wcag_aa(name, colours):
    for ground in ("paper", "card"):
        for text in ("ink", "muted", "accent", "good", "bad", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for series in range(8):
            assert contrast(colours[f"s{series}"], colours[ground]) >= 3, series
    for shade in (0.10, 0.19, 0.28, 0.37):
        for kind in ("better", "worse"):
            mixed = [shade * a + (1 - shade) * b for a, b in zip(colours[kind], colours["paper"], strict=True)]
            assert contrast(colours["ink"], mixed) >= 4.5, (kind, shade)


def test_the_page_and_its_style_are_in_the_package():
    assert {path.name for path in page.HERE.iterdir()} >= {"page.html.jinja", "page.css"}
