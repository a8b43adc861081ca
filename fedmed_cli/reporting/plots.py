"""The report's plots, each drawn by matplotlib to inline SVG from numbers that its table shows as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedmed_cli.reporting import numbers, svg
from fedmed_cli.reporting.parts import Curves, Forest, Stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_HATCHES = ("", "//", "\\\\", "--", "||", "xx", "++", "/")  # lines only: circles are large in SVG
_MARKERS = "osD^vPX*"
MAX_NAME = 24
MAX_SERIES = svg.NUM_SERIES  # more would share colour and dash
MAX_BARS = 30


def draw(name: str, plot: Forest | Stacked | Curves) -> str:
    """A plot as SVG; `name` makes the ids in it unique on a page."""
    match plot:
        case Forest():
            return _draw_forest(name, plot)
        case Stacked():
            return _draw_stacked(name, plot)
        case Curves():
            return _draw_curves(name, plot)


def undrawn(plot: Forest | Stacked | Curves) -> str | None:
    """Why a plot cannot be drawn; None where it can be."""
    if not svg.available():
        return "matplotlib is not installed (pip install matplotlib)"
    if isinstance(plot, Stacked):
        for what, number, most in (("rows", len(plot.rows), MAX_BARS), ("parts", len(plot.parts), MAX_SERIES)):
            if number > most:
                return f"{number} {what} are too many"
    return None


def describe(plot: Forest | Stacked | Curves) -> str:
    """A plot in words, for those who cannot see it."""
    match plot:
        case Forest():
            rows = [f"{name} {numbers.interval(one, 3)}" for name, one in plot.rows.items() if name in plot.strong]
            return f"Forest plot with 95 % intervals, {plot.x_label}; left of 0 is better. {'; '.join(rows)}."
        case Stacked():
            rows = []
            for name, values in list(plot.rows.items())[:MAX_SERIES]:
                total = sum(values.values()) or 1
                shares = [f"{part} {numbers.percent(values.get(part, 0) / total, 0)}" for part in plot.parts[:3]]
                rows.append(f"{name}: {numbers.joined(shares)}")
            return f"Horizontal bars of {plot.x_label}, each divided by part. {'; '.join(rows)}."
        case Curves():
            rows = [
                f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
                for name, points in list(plot.lines.items())[:MAX_SERIES]
            ]
            return f"Lines of {plot.y_label} over {plot.x_label}: {'; '.join(rows)}."


def _shorten(name: str) -> str:
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    half = MAX_NAME // 2
    return shown if len(shown) <= MAX_NAME else f"{shown[: MAX_NAME - half - 1]}…{shown[-half:]}"


def _series_style(number: int) -> dict[str, Any]:
    """Colour, dash and marker of a series: two of them differ in more than colour."""
    return {
        "color": svg.SERIES[number % svg.NUM_SERIES],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
    }


def _legend_columns(names: Sequence[str]) -> int:
    """How many columns of a legend fit over a plot; a letter is about 6 points wide, a key 42."""
    return max(1, min(4, 320 // (6 * max(len(_shorten(name)) for name in names) + 42)))


def _add_legend(axes: Axes, names: Sequence[str]) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=_legend_columns(names),
        borderaxespad=0.2,
        columnspacing=1.0,
        fontsize=9.5,
    )


def _legend_height(names: Sequence[str]) -> float:
    """Inches."""
    return 0.1 + 0.18 * -(-len(names) // _legend_columns(names))


def _draw_curves(name: str, plot: Curves) -> str:
    """Lines over steps or rounds, and a broken line where one round ends and the next begins."""
    names = list(plot.lines)[:MAX_SERIES]

    def fill(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for number, line in enumerate(names):
            xs, ys = zip(*plot.lines[line], strict=True)
            every = max(1, len(xs) // 8)
            axes.plot(
                xs, ys, **_series_style(number), markersize=4, markevery=every, linewidth=1.6, label=_shorten(line)
            )
        for place in plot.breaks:
            axes.axvline(place, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        if all(math.isnan(x) or float(x).is_integer() for line in names for x, _ in plot.lines[line]):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _add_legend(axes, names)

    return svg.draw(name, 2.9 + _legend_height(names), fill)


def _draw_stacked(name: str, plot: Stacked) -> str:
    """One horizontal bar a row, divided by part; hatches tell neighbours apart without colour."""
    names = list(plot.rows)
    values = {part: [float(row.get(part, 0)) for row in plot.rows.values()] for part in plot.parts}
    others = [sum(row.values()) - sum(row.get(part, 0) for part in plot.parts) for row in plot.rows.values()]
    if max(others) > 1e-9:
        values["all others"] = others

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = [0.0] * len(names)
        for number, (part, widths) in enumerate(values.items()):
            axes.barh(
                range(len(names)),
                widths,
                left=left,
                height=0.62,
                color=svg.SERIES[number % svg.NUM_SERIES],
                edgecolor=svg.PAPER,
                linewidth=1.0,
                hatch=_HATCHES[number % len(_HATCHES)],
                label=_shorten(part),
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(names)), [_shorten(row) for row in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(plot.x_label)
        _add_legend(axes, list(values))

    return svg.draw(name, 0.75 + 0.34 * len(names) + _legend_height(list(values)), fill)


def _draw_forest(name: str, plot: Forest) -> str:
    """Estimates with their intervals, one a line, and a line at 0."""

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (row, interval) in enumerate(plot.rows.items()):
            low, high, strong = interval.low, interval.high, row in plot.strong
            colour = svg.INK if low <= 0 <= high else svg.SERIES[2] if high < 0 else svg.SERIES[1]
            axes.plot([low, high], [place, place], color=colour, linewidth=2.6 if strong else 1.2)
            axes.plot([interval.mean], [place], "D" if strong else "o", color=colour, markersize=5.5)
        axes.axvline(0, color=svg.INK, linewidth=1.0)
        axes.set_yticks(range(len(plot.rows)), [_shorten(row) for row in plot.rows])
        for label, row in zip(axes.get_yticklabels(), plot.rows, strict=True):
            label.set_fontweight("bold" if row in plot.strong else "normal")
        axes.set_ylim(len(plot.rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(plot.x_label)

    return svg.draw(name, 0.9 + 0.25 * len(plot.rows), fill)
