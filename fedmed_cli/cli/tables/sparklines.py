"""Small pictures made of characters; `screen` puts plain ASCII in their place where a terminal has no others."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 32
INTERVAL_WIDTH = 41


def shares(values: Sequence[float], width: int = CURVE_WIDTH) -> list[float]:
    """The means of at most `width` shares of `values`, in order."""
    count = min(width, len(values))
    parts = (values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count))
    return [math.fsum(part) / len(part) for part in parts]


def curve(values: Sequence[float], low: float, high: float) -> str:
    """One block a value, as high as the value is between `low` and `high`."""
    heights = ((value - low) / (high - low) if high > low else 0.5 for value in values)
    return "".join(LEVELS[min(len(LEVELS) - 1, max(0, int(height * len(LEVELS))))] for height in heights)


def interval(low: float, mean: float, high: float, start: float, end: float, width: int = INTERVAL_WIDTH) -> str:
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
