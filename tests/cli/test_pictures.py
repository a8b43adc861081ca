"""Small pictures in the terminal: right in their numbers, and plain ASCII where there is nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmed_cli.cli.tables import pictures
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import SplitRecord
from fedmed_cli.reporting.parts import Figure, Forest, Table
from fedmed_cli.reporting.tables.comparison import comparison_parts
from fedmed_cli.reporting.tables.split import split_parts

GOLDEN = Path(__file__).parents[1] / "golden/v1"


def test_a_curve_rises_with_its_values():
    assert pictures.draw_curve([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert pictures.draw_curve([7, 0], 0, 7) == "█▁"
    assert pictures.draw_curve([2.0, 2.0], 2.0, 2.0) == "▅▅"
    assert pictures.draw_curve([], 0, 1) == ""


@pytest.mark.parametrize("number", [1, 31, 32, 33, 100, 1000])
def test_shares_are_means_of_all_values(number):
    values = np.random.default_rng(number).uniform(0, 5, number)
    found = pictures.means_of_shares(values.tolist())
    assert len(found) == min(number, 32)
    sizes = [len(values) * (i + 1) // len(found) - len(values) * i // len(found) for i in range(len(found))]
    assert np.dot(found, sizes) == pytest.approx(values.sum(), rel=1e-12)
    assert max(sizes) - min(sizes) <= 1


def test_an_interval_stands_where_its_numbers_are():
    assert pictures.draw_interval(-0.8, -0.5, -0.2, -1.0, 0.0, 11) == "  ├──●──┤ │"
    assert pictures.draw_interval(-0.2, 0.1, 0.4, -0.5, 0.5, 11) == "   ├─┼●──┤ "
    assert pictures.draw_interval(0.5, 0.5, 0.5, 0.0, 1.0, 5) == "│ ●  "
    assert pictures.draw_interval(0.0, 0.0, 0.0, 0.0, 0.0, 5) == "  ●  "


def test_a_mean_outside_its_skewed_interval_is_drawn():
    plot = Forest({"A": Interval(0.5, 0.1, 0.2), "B": Interval(-0.5, -0.2, -0.1)}, frozenset("AB"), "nats")
    (table,) = pictures.picture(Figure("x", "title", plot, Table("title", [], [])))
    assert [row[1].index("●") for row in table.rows] == [40, 0]


def figure(parts):
    return next(part for part in parts if isinstance(part, Figure))


def test_round_and_compare_draw_every_site_and_adapter():
    records = {site: Contribution.read(GOLDEN / f"rounds/001/{site}/contribution.json") for site in "ABC"}
    (table,) = pictures.loss_curves(records)
    assert [row[0] for row in table.rows] == ["A", "B", "C"]
    everything = [loss for record in records.values() for loss in record.losses]
    assert f"{min(everything):.2f} to {max(everything):.2f}" in table.caption
    for row, record in zip(table.rows, records.values(), strict=True):
        assert len(row[2]) == len(record.losses)
        assert set(row[2]) <= set(pictures.LEVELS)
    assert pictures.loss_curves({}) == []
    record = Comparison.read(GOLDEN / "reports/compare.json")
    plan = Plan.read(GOLDEN / "federation.toml")
    (drawn,) = pictures.picture(figure(comparison_parts(record, plan)))
    assert {row[0] for row in drawn.rows} == set(record.scores) - {"base"}
    assert all(len(row[1]) == pictures.INTERVAL_WIDTH and row[1].count("●") == 1 for row in drawn.rows)


def test_a_splits_bars_are_as_long_as_sites_are_large_and_name_their_largest_parts():
    record = SplitRecord.read(GOLDEN / "data/split.json")
    table, legend = pictures.picture(figure(split_parts(record)))
    sizes = {name: sum(counts.labels.values()) for name, counts in record.sites.items()}
    for name, bar, made_of in table.rows:
        labels = record.sites[name].labels
        first = max(labels, key=lambda label: (labels[label], [-ord(letter) for letter in label]))
        assert abs(len(bar) - pictures.BAR_WIDTH * sizes[name] / max(sizes.values())) <= 0.5
        assert made_of.startswith(f"{first} {100 * labels[first] / sizes[name]:.0f} %")
        assert made_of.endswith(f"{len(labels) - 4} more") == (len(labels) > 4)
    assert set("".join(row[1] for row in table.rows)) <= {part.split(" ")[0] for part in legend.text.split("   ")}


SHOW = """
import json, pathlib, sys
from fedmed_cli.cli.tables.pictures import loss_curves
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.reporting.tables.comparison import comparison_parts
from fedmed_cli.cli.screen import Screen
golden = pathlib.Path(sys.argv[1])
records = {site: Contribution.read(golden / f"rounds/001/{site}/contribution.json") for site in "ABC"}
screen = Screen()
compared = comparison_parts(Comparison.read(golden / "reports/compare.json"), Plan.read(golden / "federation.toml"))
screen.result(None, *loss_curves(records), *compared, "\\u2026 é 日")
screen.write("±0.1 日\\n")
screen.say("± said")
Screen(as_json=True).result({"name": "é 日"})
"""


def shown(**environment):
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    done = subprocess.run([sys.executable, "-c", SHOW, str(GOLDEN)], capture_output=True, env=variables)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
def test_pictures_go_into_a_pipe_as_they_are_without_colour():
    text = shown(PYTHONIOENCODING="utf-8", NO_COLOR="1").decode()
    assert "●" in text
    assert any(level in text for level in pictures.LEVELS)
    assert "\x1b" not in text
    assert shown(PYTHONIOENCODING="utf-8").decode() == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_without_utf_8_everything_is_shown_in_what_there_is(encoding):
    text = shown(PYTHONIOENCODING=encoding).decode(encoding)
    assert "o-" in text
    assert not set(text) & set("●├┤│─▁▂▃▄▅▆▇█")
    assert '"name": "\\u00e9 \\u65e5"' in text
    assert "+-0.1 ?" in text


def test_a_dumb_terminal_gets_ascii():
    from rich.console import Console

    from fedmed_cli.cli import screen

    dumb = Console(force_terminal=True, _environ={"TERM": "dumb"})
    assert screen._fitting(dumb, "▁█ ├●┤ ±1") == "_% |o| +-1".replace("%", screen._ASCII[ord("█")])
    smart = Console(force_terminal=True, _environ={"TERM": "xterm"})
    assert screen._fitting(smart, "▁█") == "▁█"
