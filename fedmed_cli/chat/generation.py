"""One answer, streamed as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.models.engines.engine import Engine, Sampling
from fedmed_cli.text import clean, without_open_end


@dataclass(frozen=True)
class Answer:
    """One generated answer with what it cost. `finish`: the model ended it or a stop text came, or it was cut."""

    text: str
    num_tokens: int
    seconds: float
    seconds_to_first_token: float
    finish: Literal["stop", "length"]

    @property
    def finished(self) -> bool:
        return self.finish == "stop"

    @property
    def tokens_per_second(self) -> float:
        """After the first token."""
        return (self.num_tokens - 1) / max(self.seconds - self.seconds_to_first_token, 1e-9)


def answer(
    engine: Engine,
    ids: Sequence[int],
    adapter: Adapter | None,
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda text: None,
    stop: Sequence[str] = (),
) -> Answer:
    """Continue a prompt's tokens with one answer, streamed to `on_text`, up to the first of the `stop` texts.

    KeyboardInterrupt, and what `on_text` raises, pass through: what was streamed until then is what there is.
    """
    started = time.perf_counter()
    raw, shown, first, num_tokens, ended = "", "", None, 0, False
    pieces = engine.generate(ids, adapter, sampling)
    try:
        for piece in pieces:
            first = first or time.perf_counter() - started
            raw += piece.text
            num_tokens += piece.num_tokens
            ended = piece.ended
            cut = min((place for text in stop if (place := raw.find(text)) >= 0), default=None)
            if cut is not None:
                raw, ended = raw[:cut], True
                break
            ready = clean(without_open_end(raw[: len(raw) - _begun(raw, stop)])).lstrip()
            if len(ready) > len(shown):
                on_text(ready[len(shown) :])
                shown = ready
    finally:
        pieces.close()
    text = clean(raw).strip()
    rest = text[len(shown) :] if text.startswith(shown) else ""
    if rest:
        on_text(rest)
    seconds = time.perf_counter() - started
    return Answer(text, num_tokens, seconds, first or seconds, "stop" if ended else "length")


def _begun(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of a growing text may be the beginning of a stop text."""
    return max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
