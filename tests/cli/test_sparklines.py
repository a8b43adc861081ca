"""Small pictures in the terminal: right in their numbers, and plain ASCII where there is nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmed_cli.cli.tables import sparklines
from fedmed_cli.cli.tables.comparison import comparison_lines
from fedmed_cli.cli.tables.federation import loss_curves
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution

GOLDEN = Path(__file__).parents[1] / "golden/v1"


def test_a_curve_rises_with_its_values():
    assert sparklines.curve([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert sparklines.curve([7, 0], 0, 7) == "█▁"
    assert sparklines.curve([2.0, 2.0], 2.0, 2.0) == "▅▅"
    assert sparklines.curve([], 0, 1) == ""


@pytest.mark.parametrize("number", [1, 31, 32, 33, 100, 1000])
def test_shares_are_means_of_all_values(number):
    values = np.random.default_rng(number).uniform(0, 5, number)
    found = sparklines.shares(values.tolist())
    assert len(found) == min(number, 32)
    sizes = [len(values) * (i + 1) // len(found) - len(values) * i // len(found) for i in range(len(found))]
    assert np.dot(found, sizes) == pytest.approx(values.sum(), rel=1e-12)
    assert max(sizes) - min(sizes) <= 1


def test_an_interval_stands_where_its_numbers_are():
    assert sparklines.interval(-0.8, -0.5, -0.2, -1.0, 0.0, 11) == "  ├──●──┤ │"
    assert sparklines.interval(-0.2, 0.1, 0.4, -0.5, 0.5, 11) == "   ├─┼●──┤ "
    assert sparklines.interval(0.5, 0.5, 0.5, 0.0, 1.0, 5) == "│ ●  "
    assert sparklines.interval(0.0, 0.0, 0.0, 0.0, 0.0, 5) == "  ●  "


def test_round_and_compare_draw_every_site_and_adapter():
    records = {site: Contribution.read(GOLDEN / f"rounds/001/{site}/contribution.json") for site in "ABC"}
    (table,) = loss_curves(records)
    assert [row[0] for row in table.rows] == ["A", "B", "C"]
    everything = [loss for record in records.values() for loss in record.losses]
    assert f"{min(everything):.2f} to {max(everything):.2f}" in table.title
    for row, record in zip(table.rows, records.values(), strict=True):
        assert len(row[2]) == len(record.losses)
        assert set(row[2]) <= set(sparklines.LEVELS)
    assert loss_curves({}) == []
    record = Comparison.read(GOLDEN / "reports/compare.json")
    drawn = next(part for part in comparison_lines(record) if getattr(part, "columns", ())[1:] == ("95 % interval",))
    assert {row[0] for row in drawn.rows} == set(record.scores) - {"base"}
    assert all(len(row[1]) == sparklines.INTERVAL_WIDTH and row[1].count("●") == 1 for row in drawn.rows)


SHOW = """
import json, pathlib, sys
from fedmed_cli.cli.tables.federation import loss_curves
from fedmed_cli.cli.tables.comparison import comparison_lines
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.cli.screen import Screen
golden = pathlib.Path(sys.argv[1])
records = {site: Contribution.read(golden / f"rounds/001/{site}/contribution.json") for site in "ABC"}
screen = Screen()
compared = Comparison.read(golden / "reports/compare.json")
screen.result(None, *loss_curves(records), *comparison_lines(compared), "\\u2026 é 日")
screen.write("±0.1 日\\n")
screen.say("± said")
Screen(as_json=True).result({"name": "é 日"})
"""


def shown(**environment):
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    done = subprocess.run([sys.executable, "-c", SHOW, str(GOLDEN)], capture_output=True, env=variables)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_pictures_go_into_a_pipe_as_they_are_without_colour():
    text = shown(PYTHONIOENCODING="utf-8", NO_COLOR="1").decode()
    assert "●" in text
    assert any(level in text for level in sparklines.LEVELS)
    assert "\x1b" not in text
    assert shown(PYTHONIOENCODING="utf-8").decode() == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_without_utf_8_everything_is_shown_in_what_there_is(encoding):
    text = shown(PYTHONIOENCODING=encoding).decode(encoding)
    assert "o-" in text
    assert not set(text) & set("●├┤│─▁▂▃▄▅▆▇█")
    assert '"name": "\\u00e9 \\u65e5"' in text
    assert "+-0.1 ?" in text


def test_a_dumb_terminal_gets_ascii(monkeypatch):
    from rich.console import Console

    from fedmed_cli.cli import screen

    dumb = Console(force_terminal=True, _environ={"TERM": "dumb"})
    assert screen._fitting(dumb, "▁█ ├●┤ ±1") == "_% |o| +-1".replace("%", screen._ASCII[ord("█")])
    smart = Console(force_terminal=True, _environ={"TERM": "xterm"})
    assert screen._fitting(smart, "▁█") == "▁█"
