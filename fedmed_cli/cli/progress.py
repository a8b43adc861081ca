"""Live progress on stderr: steps, examples, rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from fedmed_cli.cli.screen import Screen, time_left
from fedmed_cli.events import Events, StageProgress, Step


@contextlib.contextmanager
def step_events(screen: Screen, label: str) -> Iterator[Events]:
    """Events that say sentences and move a live line."""
    with screen.progress(label) as update:
        yield events_on(screen, update)


def events_on(screen: Screen, update: Callable[[float, float, str], None]) -> Events:
    """Events that say sentences and move the live line of `update`."""

    def step(state: Step) -> None:
        note = (
            f"step {state.step}/{state.max_steps}  loss {state.loss:.3f}  "
            f"{state.tokens_per_second:.0f} tokens/s  {time_left(state.seconds_left)} left"
        )
        update(state.step, state.max_steps, note)

    def measured(done: int, total: int) -> None:
        update(done, total, f"measuring, {done}/{total} examples")

    return Events(screen.say, step, measured)


@contextlib.contextmanager
def rows_progress(screen: Screen, label: str) -> Iterator[StageProgress]:
    """A callback that takes what is done, the rows so far, and the rows in all (0 where not known)."""
    with screen.progress(label) as update:
        began: dict[str, float] = {}

        def progress(what: str, done: int, total: int) -> None:
            seconds = time.perf_counter() - began.setdefault(what, time.perf_counter())
            rate = f"  {done / seconds:,.0f} rows/s" if seconds > 0.5 else ""
            of = f" of {total:,}" if total else ""
            update(done, max(total, done), f"{what}: {done:,}{of} rows{rate}")

        yield progress
