"""Plots as small pictures made of characters; `screen` uses plain ASCII where a terminal has no others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedmed_cli.records.contribution import Contribution
from fedmed_cli.reporting.parts import Figure, Forest, Part, Stacked, Table, Text

LEVELS = "▁▂▃▄▅▆▇█"
MARKS = "█▓▒░▚▞▙▟"
CURVE_WIDTH = 32
INTERVAL_WIDTH = 41
BAR_WIDTH = 28


def picture(figure: Figure) -> list[Part]:
    """A figure for the terminal: its plot where characters can show it, else the table of its numbers."""
    match figure.plot:
        case Forest():
            return [_forest_table(figure.plot)]
        case Stacked():
            return _bar_parts(figure.title, figure.plot)
    return [figure.table]


def _forest_table(plot: Forest) -> Table:
    """The intervals to look at first, drawn on one axis."""
    shown = {name: one for name, one in plot.rows.items() if name in plot.strong}
    start = min(0.0, *(min(one.low, one.mean) for one in shown.values()))  # a skewed interval may not hold its mean
    end = max(0.0, *(max(one.high, one.mean) for one in shown.values()))
    rows = [[name, draw_interval(one.low, one.mean, one.high, start, end)] for name, one in shown.items()]
    title = f"{start:+.3f} to {end:+.3f} {plot.x_label}; left is better"
    return Table(title, ["adapter", "95 % interval"], rows, frozenset({1}))


def _bar_parts(title: str, plot: Stacked) -> list[Part]:
    """A bar for each row, as long as the row is large, with its largest parts in words; and what the marks mean."""
    parts = list(plot.parts)[: len(MARKS) - 1]
    largest = max(sum(row.values()) for row in plot.rows.values())
    rows = []
    for name, row in plot.rows.items():
        total = sum(row.values()) or 1
        first = sorted(row.items(), key=lambda item: (-item[1], item[0]))
        made_of = ", ".join(f"{part} {100 * count / total:.0f} %" for part, count in first[:4])
        more = f", {len(first) - 4} more" if len(first) > 4 else ""
        rows.append([name, _draw_bar(row, parts, BAR_WIDTH * total / largest), made_of + more])
    legend = "   ".join(f"{mark} {part[:30]}" for mark, part in zip(MARKS, parts, strict=False))
    if any(set(row) - set(parts) for row in plot.rows.values()):
        legend += f"   {MARKS[-1]} all others"
    return [Table(title, ["site", f"number of {plot.x_label}", "made of"], rows, frozenset({1, 2})), Text(legend)]


def _draw_bar(row: Mapping[str, float], parts: Sequence[str], width: float) -> str:
    """A bar of `width` characters, divided by part as far as whole characters go."""
    total = sum(row.values()) or 1
    counts = [row.get(part, 0) for part in parts]
    bar, end = "", 0.0
    for mark, count in [*zip(MARKS, counts, strict=False), (MARKS[-1], total - sum(counts))]:
        end += count
        bar += mark * (round(width * end / total) - len(bar))
    return bar


def loss_curves(records: Mapping[str, Contribution]) -> list[Part]:
    """Each site's training loss over its steps as a small curve, all on one scale; nothing where no step has one."""
    losses = {name: means_of_shares(record.losses) for name, record in records.items() if record.losses}
    if not losses:
        return []
    low, high = (edge(edge(values) for values in losses.values()) for edge in (min, max))
    rows = [
        [name, f"{values[0]:.3f}", draw_curve(values, low, high), f"{values[-1]:.3f}"]
        for name, values in losses.items()
    ]
    steps = max(len(record.losses) for record in records.values())
    each = f", a block is up to {-(-steps // CURVE_WIDTH)} steps" if steps > CURVE_WIDTH else ""
    title = f"Training loss, {low:.2f} to {high:.2f} nats{each}"
    return [Table(title, ["site", "first", "loss", "last"], rows, frozenset({2}))]


def means_of_shares(values: Sequence[float], width: int = CURVE_WIDTH) -> list[float]:
    """The means of at most `width` shares of `values`, in order."""
    count = min(width, len(values))
    parts = (values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count))
    return [math.fsum(part) / len(part) for part in parts]


def draw_curve(values: Sequence[float], low: float, high: float) -> str:
    """One block a value, as high as the value is between `low` and `high`."""
    heights = ((value - low) / (high - low) if high > low else 0.5 for value in values)
    return "".join(LEVELS[min(len(LEVELS) - 1, max(0, int(height * len(LEVELS))))] for height in heights)


def draw_interval(low: float, mean: float, high: float, start: float, end: float, width: int = INTERVAL_WIDTH) -> str:
    """An interval with its mean on an axis from `start` to `end`, which holds 0: there stands a line."""

    def place(value: float) -> int:
        return round((width - 1) * (value - start) / (end - start)) if end > start else width // 2

    row = [" "] * width
    row[place(0.0)] = "│"
    for i in range(place(low), place(high) + 1):
        row[i] = "┼" if i == place(0.0) else "─"
    if place(high) > place(low):
        row[place(low)], row[place(high)] = "├", "┤"
    row[place(mean)] = "●"
    return "".join(row)
