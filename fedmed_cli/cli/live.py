"""Live progress of training and measuring, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fedmed_cli.cli.screen import Screen, time_left
from fedmed_cli.events import Events, Step


@contextlib.contextmanager
def step_events(screen: Screen, label: str) -> Iterator[Events]:
    """Events that say sentences and move a live line."""
    with screen.progress(label) as update:

        def step(state: Step) -> None:
            note = (
                f"step {state.step}/{state.max_steps}  loss {state.loss:.3f}  "
                f"{state.tokens_per_second:.0f} tokens/s  {time_left(state.seconds_left)} left"
            )
            update(state.step, state.max_steps, note)

        def measured(done: int, total: int) -> None:
            update(done, total, f"measuring, {done}/{total} examples")

        yield Events(screen.say, step, measured)
