"""One answer, streamed as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedmed_cli.chat.decoding import Decoder, generate
from fedmed_cli.errors import MachineError
from fedmed_cli.models.prompts import prompt_ids
from fedmed_cli.text import clean, without_open_end


@dataclass(frozen=True)
class Answer:
    """One generated answer with what it cost."""

    text: str
    num_tokens: int
    seconds: float
    seconds_to_first_token: float
    finished: bool

    @property
    def tokens_per_second(self) -> float:
        """After the first token."""
        return (self.num_tokens - 1) / max(self.seconds - self.seconds_to_first_token, 1e-9)


def answer(
    decoder: Decoder,
    tokenizer: Any,
    messages: list[dict[str, str]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    on_text: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Continue a conversation with one answer, streamed to `on_text`; greedy at temperature 0.

    KeyboardInterrupt passes through: what was streamed until then is what there is.
    """
    started = time.perf_counter()
    ids = prompt_ids(messages, tokenizer)
    tokens: list[int] = []
    shown = ""
    first = None
    stop = frozenset({int(tokenizer.eos_token_id)})
    try:
        for token in generate(decoder, ids, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop):
            first = first or time.perf_counter() - started
            tokens.append(token)
            ready = _ready(tokenizer.decode(tokens, skip_special_tokens=True))
            if len(ready) > len(shown):
                on_text(ready[len(shown) :])
                shown = ready
    except torch.OutOfMemoryError:
        raise MachineError("out of memory while answering", hint="start a new conversation") from None
    text = clean(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    rest = text[len(shown) :] if text.startswith(shown) else ""
    if rest:
        on_text(rest)
    seconds = time.perf_counter() - started
    return Answer(text, len(tokens), seconds, first or seconds, len(tokens) < max_new_tokens)


def _ready(text: str) -> str:
    """What can be shown of a text that is still growing: no half character, no half escape sequence."""
    return clean(without_open_end(text)).lstrip()
