"""What people and scripts see: results on stdout, everything else on stderr. The only module that imports rich.

It does so when something is shown: a quiet command need not wait for it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedmed_cli.errors import FedmedError
from fedmed_cli.records.codec import control_character
from fedmed_cli.reporting.parts import Cell, Figure, Group, Pairs, Part, Table, Text
from fedmed_cli.text import escape_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.markdown import Markdown


class Screen:
    """One command's output. With `as_json` stdout gets one JSON value, with `quiet` stderr gets errors alone."""

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose

    @cached_property
    def out(self) -> Console:
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 140  # files and pipes have no width; tables should not wrap there
        if not _is_utf8(console) and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a question mark is better than no result
        return console

    @cached_property
    def err(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        """A sentence about what happens, on stderr."""
        if not self.quiet:
            # Words are wrapped for a reader; what goes to a file stays one line, whatever a file's name holds.
            self.err.print(
                escape(_fitting(self.err, " ".join(message.splitlines()))), soft_wrap=not self.err.is_terminal
            )

    def detail(self, message: str) -> None:
        """A sentence that only --verbose shows, on stderr."""
        if self.verbose:
            self.say(message)

    def result(self, value: Any, *shown: Part | str) -> None:
        """The command's result: `value` as JSON, or parts and lines for people."""
        if self.as_json:
            text = json.dumps(value, indent=2, ensure_ascii=not _is_utf8(self.out), allow_nan=False)
            sys.stdout.write(escape_json(text).encode("utf-8", "replace").decode("utf-8") + "\n")
        self.show(*shown)

    def show(self, *shown: Part | str) -> None:
        """Parts and lines for people, before there is a result or beside it."""
        if not (self.as_json or self.quiet):
            for part in shown:
                self._print(part)

    def _print(self, part: Part | str) -> None:
        match part:
            case str():
                self.out.print(self._safe(part), soft_wrap=True)
            case Text():
                # Sentences are wrapped for a reader; what goes to a file stays one line.
                self.out.print(self._safe(part.text), soft_wrap=not self.out.is_terminal)
            case Table():
                self._print_table(part)
            case Pairs():
                self._print_pairs(part)
            case Figure():
                from fedmed_cli.cli.tables.pictures import picture

                for inner in picture(part):
                    self._print(inner)
            case Group():
                self.out.print(f"[bold]{self._safe(part.title)}[/bold]")
                for inner in part.parts:
                    self._print(inner)

    def _print_table(self, table: Table) -> None:
        from rich import box
        from rich.table import Table as RichTable

        self.out.print(f"[bold]{self._safe(table.caption)}[/bold]", soft_wrap=not self.out.is_terminal)
        shown = RichTable(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for i, column in enumerate(table.columns):
            is_text = i == 0 or i in table.left
            shown.add_column(self._safe(column), justify="left" if is_text else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(self._safe, row))
        self.out.print(shown)

    def _print_pairs(self, pairs: Pairs) -> None:
        from rich.table import Table as RichTable

        shown = RichTable.grid(padding=(0, 2))
        for name, value in pairs.rows:
            shown.add_row(self._safe(name), self._safe(value))
        self.out.print(shown)

    def _safe(self, content: str | Cell) -> str:
        """A text or cell that steers neither the terminal nor rich; a minus sign is the one that programs read."""
        text = (
            content if isinstance(content, str) else "\n".join(part for part in (content.text, *content.lines) if part)
        )
        return escape(_fitting(self.out, text.replace("\N{MINUS SIGN}", "-")))

    def write(self, text: str) -> None:
        """A piece of streamed text on stdout, as it is, but for control characters."""
        sys.stdout.write(_fitting(self.out, text))
        sys.stdout.flush()

    @property
    def _is_rich(self) -> bool:
        """Whether stdout is a terminal that can move its cursor."""
        return self.out.is_terminal and not self.out.is_dumb_terminal

    def notice(self, level: str, message: str) -> None:
        """What the guardrails say: on stdout where it stands for or before an answer, else on stderr."""
        if level == "notice":
            self.say(f"note: {message}")
        elif level == "possible":
            self.result(None, f"{message}\n")
        elif not self._is_rich:
            self.write(f"{'URGENT' if level == 'urgent' else 'DECLINED'}: {message}\n\n")
        else:
            from rich.panel import Panel

            title, style = ("Urgent", "bold red") if level == "urgent" else ("No answer", "yellow")
            self.out.print(
                Panel(escape(_plain(message)), title=title, title_align="left", border_style=style, width=self._width)
            )

    @property
    def _width(self) -> int:
        return min(self.out.width, 100)  # longer lines are hard to read

    @contextlib.contextmanager
    def answer(self, label: str) -> Iterator[Callable[[str], None]]:
        """An answer that grows: as Markdown under its label on a terminal, as plain text elsewhere."""
        if not self._is_rich:
            yield self.write
            self.write("\n")
            return
        self.out.print(f"[dim]{escape(label)}[/dim]", width=self._width)
        stream = _MarkdownStream(self.out, self._width)
        try:
            with _no_echo(), stream:
                yield stream.add
        finally:
            self.out.print()

    def side_by_side(self, columns: Iterable[tuple[str, str]], label: str) -> None:
        """Answers beside each other where the screen is wide enough, else below each other."""
        from rich.table import Table as RichTable

        columns = list(columns)
        if not self._is_rich:
            for name, text in columns:
                self.write(f"[{name}]\n{text}\n\n")
            return
        self.out.print(f"[dim]{escape(label)}[/dim]")
        if self.out.width < 100:
            for name, text in columns:
                self.out.rule(f"[bold]{escape(name)}[/bold]", align="left", style="dim")
                self.out.print(_markdown(text or "(no answer)"))
            return
        table = RichTable(expand=True, show_lines=False)
        for name, _ in columns:
            table.add_column(escape(name), ratio=1, overflow="fold")
        table.add_row(*(_markdown(text or "(no answer)") for _, text in columns))
        self.out.print(table)

    def commands(self, rows: Iterable[tuple[str, str]]) -> None:
        """Commands with what they do, on stderr."""
        from rich.table import Table as RichTable

        grid = RichTable.grid(padding=(0, 2))
        for command, what in rows:
            grid.add_row(escape(command), escape(what))
        self.err.print(grid)

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


def escape(text: str) -> str:
    """`text` with nothing left that rich would take for markup."""
    from rich.markup import escape as escaped

    return escaped(text)


def _plain(text: str) -> str:
    """`text` without what could steer a terminal: foreign names and a model's answers are shown, never obeyed."""
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(c if c in "\n\t" or not control_character(c) else "\N{REPLACEMENT CHARACTER}" for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8")


# What the pictures and sentences of the commands hold beyond ASCII, for terminals that cannot show it.
_ASCII = str.maketrans(
    dict(zip("▁▂▃▄▅▆▇█▓▒░▚▞▙▟", "_.,-=+*#%o:x/vn", strict=True))
    | {"├": "|", "─": "-", "┼": "+", "┤": "|", "│": "!", "●": "o", "±": "+-", "…": "...", "×": "x", "−": "-"}
)


def _is_utf8(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def _fitting(console: Console, text: str) -> str:
    """`text` as `_plain` gives it, in plain ASCII where the stream or the terminal has nothing else."""
    text = _plain(text)
    if _is_utf8(console) and not console.is_dumb_terminal:
        return text
    return text.translate(_ASCII)


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile from being drawn into a moving picture; it is read afterwards all the same."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (OSError, ValueError, termios.error):  # stdin is not a terminal
        yield
        return
    silent = termios.tcgetattr(handle)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _markdown(text: str) -> Markdown:
    """What a model wrote. A link shows its address instead of leading there: its text could claim another."""
    from rich.markdown import Markdown

    return Markdown(text, hyperlinks=False)


# A paragraph of more characters is drawn again only once it has grown by this factor: each of them takes time.
ALWAYS_DRAWN, DRAWN_AGAIN = 500, 1.02


class _MarkdownStream:
    """Markdown that grows: finished paragraphs are printed for good, the last one is drawn again with each piece."""

    def __init__(self, console: Console, width: int) -> None:
        from rich.live import Live

        self._console = console
        self._width = width
        self._tail, self._drawn = "", 0  # what is not printed yet, and how long it was when it was last drawn
        self._live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> _MarkdownStream:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        self._print(self._tail)

    def add(self, text: str) -> None:
        self._tail += text
        while True:
            cut = self._finished()
            if not cut:
                break
            done, self._tail, self._drawn = self._tail[:cut], self._tail[cut:], 0
            self._print(done)
        if ALWAYS_DRAWN < len(self._tail) < DRAWN_AGAIN * self._drawn:
            return
        self._drawn = len(self._tail)
        # Only what fits is drawn: a live region that is taller than the screen cannot be taken back.
        lines = self._tail.splitlines()[-max(self._console.height - 4, 3) :]
        shown = "\n".join(lines)
        self._live.update(_markdown(shown) if shown.strip() else "", refresh=True)

    def _finished(self) -> int:
        """Where the first finished paragraph ends: at an empty line that is not inside a code block; 0 if none."""
        start = fences = 0
        while (place := self._tail.find("\n\n", start)) >= 0:
            fences += self._tail.count("```", start, place)
            start = place + 2
            if fences % 2 == 0:
                return start
        return 0

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(_markdown(text), width=self._width)


def show_error(error: FedmedError) -> None:
    """The one form of an error: a line with the fault, a line with the remedy."""
    sys.stderr.write(f"fedmed: error: {_one_line(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"fedmed: hint: {_one_line(error.hint)}\n")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def time_left(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
