"""The parts a report's page is built of, and the page: one HTML file without a script or a reference to elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmed_cli.text import clean

HERE = Path(__file__).parent
GENERATOR = "fedmed report"


@dataclass(frozen=True)
class Cell:
    """A table's cell: a text, a list of sentences, or both. `kind` names a class of page.css."""

    text: str = ""
    kind: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind` is "", "note" (a limit to read it with), "missing" or "fault"."""

    text: str
    kind: str = ""
    part: str = "text"


@dataclass(frozen=True)
class Pairs:
    """Names with their values; a value of digits and letters that nobody reads as a word is shown as code."""

    rows: tuple[tuple[str, str | Cell], ...]
    code: frozenset[str] = frozenset()
    part: str = "pairs"


@dataclass(frozen=True)
class Grid:
    """A table. The first cell of a row is its header; columns in `left` are texts, the others numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: frozenset[int] = frozenset()
    folded: bool = False
    part: str = "grid"


@dataclass(frozen=True)
class Figure:
    """A plot with the text that stands for it, and the table of its numbers. `svg` None: it could not be drawn."""

    name: str
    title: str
    description: str
    svg: str | None
    table: Grid
    part: str = "figure"


@dataclass(frozen=True)
class Answers:
    """Questions with each adapter's answer beside the others: (question, ((adapter, answer), …))."""

    questions: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    part: str = "answers"


@dataclass(frozen=True)
class Beside:
    """Columns of parts, beside each other where the screen is wide enough."""

    columns: Sequence[Sequence[Part]]
    part: str = "beside"


@dataclass(frozen=True)
class Group:
    """Parts under a heading of their own, or folded away under it."""

    title: str
    parts: Sequence[Part]
    folded: bool = False
    part: str = "group"


Part = Text | Pairs | Grid | Figure | Answers | Beside | Group


@dataclass(frozen=True)
class Section:
    """One section of the page; `name` is its anchor."""

    name: str
    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


def render(title: str, lead: Sequence[str], sections: Sequence[Section], footer: Sequence[str]) -> str:
    """The page. Every text is escaped, and stripped of what could turn the direction of what stands around it."""
    import jinja2
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    # Nothing may be fetched, run or styled but the one style element of this digest.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=sections,
        footer=footer,
        style=Markup(style),
        policy=Markup(policy),
        generator=GENERATOR,
        markup=Markup,
    )
