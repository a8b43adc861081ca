"""Live progress of a split, on stderr: rows and rows a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from fedmed_cli.cli.screen import Screen


@contextlib.contextmanager
def rows_progress(screen: Screen, label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback that takes what is done, the rows so far, and the rows in all (0 where not known)."""
    with screen.progress(label) as update:
        began: dict[str, float] = {}

        def progress(what: str, done: int, total: int) -> None:
            seconds = time.perf_counter() - began.setdefault(what, time.perf_counter())
            rate = f"  {done / seconds:,.0f} rows/s" if seconds > 0.5 else ""
            of = f" of {total:,}" if total else ""
            update(done, max(total, done), f"{what}: {done:,}{of} rows{rate}")

        yield progress
