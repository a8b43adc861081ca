"""The parts that results are shown with: plain data, which `cli.screen` shows as text and `report.page` as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed_cli.records.measures import Interval


@dataclass(frozen=True)
class Cell:
    """A table's cell: a text, a list of sentences, or both. `kind` names a class of page.css."""

    text: str = ""
    kind: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind` is "", "verdict", "note" (a limit to read it with), "missing" or "fault"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Pairs:
    """Names with their values; those named in `code` hold digits and letters that nobody reads as a word."""

    rows: Sequence[tuple[str, str | Cell]]
    code: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its header; columns in `left` are texts, the others numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Forest:
    """Estimates with their intervals by name, below each other; those in `strong` are the ones to look at first."""

    rows: Mapping[str, Interval]
    strong: frozenset[str]
    x_label: str


@dataclass(frozen=True)
class Stacked:
    """One bar a row, divided by part. Parts that are not among `parts` count together as all others."""

    rows: Mapping[str, Mapping[str, float]]
    parts: Sequence[str]
    x_label: str


@dataclass(frozen=True)
class Curves:
    """Points (x, y) of lines by name; (nan, nan) interrupts a line. At each x in `breaks` a round ends."""

    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    breaks: Sequence[float] = ()


@dataclass(frozen=True)
class Figure:
    """A plot with the table of its numbers; `name` makes it and what it is referred to by unique on a page."""

    name: str
    title: str
    plot: Forest | Stacked | Curves
    table: Table


@dataclass(frozen=True)
class Answers:
    """Questions with each adapter's answer, by its name, beside the others."""

    questions: Sequence[tuple[str, Mapping[str, str]]]


@dataclass(frozen=True)
class Beside:
    """Columns of parts, beside each other where the screen is wide enough."""

    columns: Sequence[Sequence[Part]]


@dataclass(frozen=True)
class Group:
    """Parts under a heading of their own, or folded away under it."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


Part = Text | Pairs | Table | Figure | Answers | Beside | Group


@dataclass(frozen=True)
class Section:
    """One section of the report's page; `name` is its anchor."""

    name: str
    title: str
    parts: Sequence[Part]
