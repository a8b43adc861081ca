"""Lines from a person at a terminal: editing, history, completion, several lines at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmed_cli.errors import InputError

if TYPE_CHECKING:
    from prompt_toolkit.document import Document

PROMPT = "› "


def reader(commands: Iterable[str], sites: Iterable[str], history: Path | None) -> Callable[[], str]:
    """A function that reads a question, several lines where Alt-Enter, a paste or a last backslash made them.

    With `history` lines are kept in that file, readable by its owner alone; else for this session only. It raises
    EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C. A dumb terminal gets plain lines.
    """
    if os.environ.get("TERM", "") in ("dumb", "unknown", ""):
        return _plain_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.color_depth import ColorDepth

    names, own_sites = list(commands), list(sites)

    class SlashCompleter(Completer):
        """Commands at the start of a line, and then what the command takes."""

        def get_completions(self, document: Document, complete_event: Any) -> Iterable[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            command, space, rest = text.partition(" ")
            if not space:
                yield from (Completion(name, -len(text)) for name in names if name.startswith(text))
            elif command == "/site":
                yield from (Completion(site, -len(rest)) for site in own_sites if site.startswith(rest))
            elif command == "/set":
                known = ("temperature", "max-new-tokens")
                yield from (Completion(name, -len(rest)) for name in known if name.startswith(rest))
            elif command in ("/adapter", "/save", "/load"):
                inner = type(document)(rest, len(rest))
                yield from PathCompleter(expanduser=True).get_completions(inner, complete_event)

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    if history is not None:
        _private(history)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)) if history is not None else InMemoryHistory(),
        completer=SlashCompleter(),
        complete_while_typing=True,
        auto_suggest=AutoSuggestFromHistory(),
        key_bindings=bindings,
        multiline=True,
        prompt_continuation="  ",
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        reserve_space_for_menu=4,
    )
    return lambda: session.prompt(PROMPT)


def _private(path: Path) -> None:
    """Make the history file, or see that nobody else can read it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise InputError(f"{path}: the history cannot be kept there ({error.strerror})") from None
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _plain_line() -> str:
    """One line, or more where each but the last ends with a backslash."""
    line = input("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("  ")
    return line
