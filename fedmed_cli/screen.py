"""What people and scripts see: results on stdout, everything else on stderr. The only module that imports rich."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedmed_cli.codec import control_character
from fedmed_cli.errors import FedmedError


@dataclass(frozen=True)
class Table:
    """A table to show: column headers, rows of texts; columns after the first are aligned right unless named."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})
    caption: str | None = None


class Screen:
    """One command's output. With `as_json` stdout gets one JSON value, with `quiet` stderr gets errors alone."""

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.out = Console(highlight=False)
        if not self.out.is_terminal:
            self.out.width = 140  # files and pipes have no width; tables should not wrap there
        self.err = Console(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        """A sentence about what happens, on stderr."""
        if not self.quiet:
            self.err.print(escape(_plain(message)), soft_wrap=True)

    def detail(self, message: str) -> None:
        """A sentence that only --verbose shows, on stderr."""
        if self.verbose:
            self.say(message)

    def result(self, value: Any, *shown: Table | str) -> None:
        """The command's result: `value` as JSON, or the tables and lines for people."""
        if self.as_json:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
            sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8") + "\n")
            return
        if self.quiet:
            return
        for part in shown:
            if isinstance(part, str):
                self.out.print(escape(_plain(part)), soft_wrap=True)
            else:
                self._table(part)

    def _table(self, table: Table) -> None:
        from rich import box
        from rich.table import Table as RichTable

        wide = RichTable(
            title=escape(_plain(table.title)),
            title_justify="left",
            title_style="bold",
            caption=escape(table.caption) if table.caption else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for i, column in enumerate(table.columns):
            wide.add_column(escape(column), justify="left" if i in table.left else "right", overflow="fold")
        for row in table.rows:
            wide.add_row(*(escape(_plain(cell)) for cell in row))
        self.out.print(wide)

    def write(self, text: str) -> None:
        """A piece of streamed text on stdout, as it is, but for control characters."""
        sys.stdout.write(_plain(text))
        sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[float, float, str], None]]:
        """A live line on stderr while long work runs: call it with done, total and a note. Nothing off a terminal."""
        if self.quiet or not self.err.is_terminal:
            yield lambda done, total, note: None
            return
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(escape(label), total=None, note="")

            def update(done: float, total: float, note: str) -> None:
                bar.update(task, completed=done, total=total, note=escape(note))

            yield update


def _plain(text: str) -> str:
    """`text` without what could steer a terminal: foreign names and a model's answers are shown, never obeyed."""
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(c if c in "\n\t" or not control_character(c) else "\N{REPLACEMENT CHARACTER}" for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8")


def show_error(error: FedmedError) -> None:
    """The one form of an error: a line with the fault, a line with the remedy."""
    sys.stderr.write(f"fedmed: error: {_one_line(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"fedmed: hint: {_one_line(error.hint)}\n")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def number_of_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def time_left(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
