"""Records as tables: one model of each, which the terminal and the report show with the same words and numbers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.html_tree import parse, section

from fedmed_cli.cli.screen import Screen
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.comparison import Comparison, Score
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.reporting import numbers, page
from fedmed_cli.reporting.parts import Cell, Section, Table, Text
from fedmed_cli.reporting.tables.comparison import comparison_parts, in_order, losses_table, site_matrix_parts, verdict
from fedmed_cli.reporting.tables.round import round_parts, validation_table

GOLDEN = Path(__file__).parents[1] / "golden/v1"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def plan():
    return Plan.read(GOLDEN / "federation.toml")


@pytest.fixture
def record():
    return Comparison.read(GOLDEN / "reports/compare.json")


def parts_of_everything(plan, record):
    contributions = [Contribution.read(GOLDEN / f"rounds/001/{site}/contribution.json") for site in "ABC"]
    by_site = {site: {name: scores["overall"] for name, scores in record.scores.items()} for site in "ABC"}
    return [
        *comparison_parts(record, plan),
        *site_matrix_parts(by_site, plan),
        *round_parts(Aggregate.read(GOLDEN / "rounds/001/global/aggregate.json")),
        validation_table(contributions),
    ]


def on_the_terminal(parts, capsys, width):
    screen = Screen()
    screen.out.width = width
    capsys.readouterr()
    screen.result(None, *parts)
    return capsys.readouterr().out


def cells(parts):
    """Every text of every table, and every sentence."""
    for part in parts:
        if isinstance(part, Text):
            yield part.text
        elif isinstance(part, Table):
            yield part.caption
            for row in part.rows:
                for cell in row:
                    yield from [cell] if isinstance(cell, str) else [cell.text, *cell.lines]


def test_terminal_and_report_show_the_same_sentences_and_numbers(plan, record, capsys):
    parts = parts_of_everything(plan, record)
    text = on_the_terminal(parts, capsys, 400)
    html = section(parse(page.render("t", [], [Section("one", "One", parts)], [])), "one").text
    texts = [cell for cell in cells(parts) if cell]
    assert len(texts) > 100
    for cell in texts:
        assert cell.replace(MINUS, "-") in text
        assert cell in html


def test_every_table_of_three_sites_fits_80_columns_without_breaking_an_interval(plan, record, capsys):
    tables = [part for part in parts_of_everything(plan, record) if isinstance(part, Table)]
    text = on_the_terminal(tables, capsys, 80)
    captions = {table.caption for table in tables}
    assert all(len(line) <= 80 for line in text.splitlines() if line not in captions)
    intervals = [cell for cell in cells(tables) if "[" in cell]
    assert len(intervals) > 10
    for interval in intervals:
        assert interval.replace(MINUS, "-") in text


def test_the_terminal_shows_tables_without_the_code_of_the_page():
    code = (
        "import sys, fedmed_cli.cli.screen, fedmed_cli.cli.tables.round, fedmed_cli.cli.tables.pictures;"
        "import fedmed_cli.reporting.tables.comparison, fedmed_cli.reporting.tables.split;"
        "names = ('jinja2', 'matplotlib', *(f'fedmed_cli.reporting.{name}' for name in ('page', 'plots', 'svg')));"
        "sys.exit(sum(name in sys.modules for name in names))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def with_global(record, interval, num_groups=40):
    overall = replace(record.scores["global"]["overall"], against_base=interval, num_groups=num_groups)
    return replace(record, scores=record.scores | {"global": {"overall": overall}})


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (Interval(-0.3, -0.4, -0.2), "better than the base model: its loss is lower by 0.3000 nats per answer token"),
        (Interval(0.3, 0.2, 0.4), "worse than the base model: its loss is higher by 0.3000 nats per answer token"),
        (Interval(-0.1, -0.3, 0.1), "do not show a difference"),
        (Interval(0.0, 0.0, 0.0), "do not show a difference"),
    ],
)
def test_the_verdict_goes_by_the_interval(record, interval, words):
    sentence = verdict(with_global(record, interval))
    assert words in sentence
    if "than" in words:
        assert "(95 % interval 0.2000 to 0.4000)" in sentence
    assert verdict(with_global(record, interval, num_groups=1)) is None


def test_few_groups_are_said_and_one_group_has_no_interval():
    assert numbers.few_groups(30) == []
    assert numbers.few_groups(29)[0].text.startswith("Only 29 groups of examples: the intervals are rough")
    assert numbers.few_groups(1)[0].text == "Only 1 group of examples: there is no interval."


def test_adapters_stand_in_a_readers_order(plan):
    names = ["twin", "global", "C", "global-10", "pooled", "base", "global-2", "A"]
    assert in_order(names, plan) == ["base", "A", "C", "pooled", "twin", "global-2", "global-10", "global"]


def test_a_gap_in_the_matrix_stays_empty_and_a_star_marks_what_is_not_by_chance(plan):
    def score(loss, change):
        return Score(loss, 1.0, 0.0, 5, 5, 5, change, None)

    by_site = {
        "A": {"base": score(2.0, None), "global": score(1.9, Interval(-0.1, -0.2, -0.05))},
        "B": {"base": score(2.0, None), "C": score(2.1, Interval(0.1, -0.1, 0.3))},
    }
    table = next(part for part in site_matrix_parts(by_site, plan) if isinstance(part, Table))
    assert table.columns == ["site", "base", "C", "global", "examples"]
    assert [cell if isinstance(cell, str) else (cell.text, *cell.lines) for cell in table.rows[0]] == [
        "A", ("2.0000",), ("",), ("1.9000", f"{MINUS}0.1000*"), "5 in 5 groups"
    ]  # fmt: skip
    assert table.rows[1][2].lines == ("+0.1000",)
    assert table.rows[1][3] == Cell()


def test_of_many_adapters_each_has_a_row(plan):
    score = Score(2.0, 1.0, 0.0, 5, 5, 5, None, None)
    by_site = {site: {f"adapter-{n:02d}": score for n in range(30)} for site in "AB"}
    table = losses_table("Losses", "site", by_site, plan, {"adapter-00": 2.0})
    assert table.columns == ["adapter", "A", "B", "mean"]
    assert [row[0] for row in table.rows] == [*(f"adapter-{n:02d}" for n in range(30)), "examples"]
    assert [cell if isinstance(cell, str) else cell.text for cell in table.rows[0]] == [
        "adapter-00", "2.0000", "2.0000", "2.0000"
    ]  # fmt: skip
    assert table.rows[-1] == ["examples", "5 in 5 groups", "5 in 5 groups", ""]
