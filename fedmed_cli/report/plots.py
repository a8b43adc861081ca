"""The report's plots, each drawn by matplotlib to inline SVG from numbers that its table shows as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedmed_cli.records.measures import Interval
from fedmed_cli.report import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_HATCHES = ("", "//", "\\\\", "--", "||", "xx", "++", "/")  # lines alone: circles are large in SVG
_MARKERS = "osD^vPX*"
MAX_NAME = 24
MAX_SERIES = svg.NUM_SERIES  # more would share colour and dash


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one line, by its name."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Row:
    """One line of a forest plot. `strong` rows are the ones to look at first."""

    name: str
    interval: Interval
    strong: bool = False


def _short(name: str) -> str:
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 1] + "…"


def _style(number: int) -> dict[str, Any]:
    """Colour, dash and marker of a series: two of them differ in more than colour."""
    return {
        "color": svg.SERIES[number % svg.NUM_SERIES],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
    }


def _columns(names: Sequence[str]) -> int:
    """How many columns of a legend fit over a plot; a letter is about 6 points wide, a key 42."""
    return max(1, min(4, 320 // (6 * max(len(_short(name)) for name in names) + 42)))


def _legend(axes: Axes, names: Sequence[str]) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=_columns(names),
        borderaxespad=0.2,
        columnspacing=1.0,
        fontsize=9.5,
    )


def _legend_height(names: Sequence[str]) -> float:
    """Inches."""
    return 0.1 + 0.18 * -(-len(names) // _columns(names))


def curves(name: str, lines: Sequence[Curve], x_label: str, y_label: str, breaks: Sequence[float] = ()) -> str:
    """Lines over steps or rounds; `breaks` draws where one round ends and the next begins."""
    names = [line.name for line in lines]

    def fill(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            xs, ys = zip(*line.points, strict=True)
            every = max(1, len(xs) // 8)
            axes.plot(xs, ys, **_style(number), markersize=4, markevery=every, linewidth=1.6, label=_short(line.name))
        for place in breaks:
            axes.axvline(place, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if all(math.isnan(x) or float(x).is_integer() for line in lines for x, _ in line.points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, names)

    return svg.draw(name, 2.9 + _legend_height(names), fill)


def stacked(name: str, rows: Mapping[str, Mapping[str, float]], parts: Sequence[str], x_label: str) -> str:
    """One horizontal bar a row, divided by part; hatches tell neighbours apart without colour."""
    names = list(rows)

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = [0.0] * len(names)
        for number, part in enumerate(parts):
            values = [float(rows[row].get(part, 0)) for row in names]
            axes.barh(
                range(len(names)),
                values,
                left=left,
                height=0.62,
                color=svg.SERIES[number % svg.NUM_SERIES],
                edgecolor=svg.PAPER,
                linewidth=1.0,
                hatch=_HATCHES[number % len(_HATCHES)],
                label=_short(part),
            )
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(names)), [_short(row) for row in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        _legend(axes, parts)

    return svg.draw(name, 0.75 + 0.34 * len(rows) + _legend_height(parts), fill)


def forest(name: str, rows: Sequence[Row], x_label: str) -> str:
    """Estimates with their intervals, one a line, and a line at 0."""

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            low, high = row.interval.low, row.interval.high
            colour = svg.INK if low <= 0 <= high else svg.SERIES[2] if high < 0 else svg.SERIES[1]
            axes.plot([low, high], [place, place], color=colour, linewidth=2.6 if row.strong else 1.2)
            axes.plot([row.interval.mean], [place], "D" if row.strong else "o", color=colour, markersize=5.5)
        axes.axvline(0, color=svg.INK, linewidth=1.0)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.strong else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)

    return svg.draw(name, 0.9 + 0.25 * len(rows), fill)
