"""Answers from a model: streamed for a chat, or in a batch for a comparison."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from fedmed_cli.errors import MachineError
from fedmed_cli.examples import prompt_ids
from fedmed_cli.models import LanguageModel

# Escape sequences and control characters a model might emit must not reach a terminal.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Answer:
    """One generated answer with what it cost."""

    text: str
    num_tokens: int
    seconds: float
    seconds_to_first_token: float
    finished: bool


def clean(text: str) -> str:
    """`text` without terminal escapes and control characters other than line feed and tab."""
    return _ESCAPES.sub("", text)


class _Streamer(TextStreamer):  # type: ignore[misc]  # transformers is untyped here
    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.first: float | None = None
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen and self.first is None:
            self.first = time.perf_counter()
        self._prompt_seen = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(clean(text))


def answer(
    lm: LanguageModel,
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
    ids = torch.tensor([prompt_ids(messages, lm.tokenizer)], device=lm.device)
    streamer = _Streamer(lm.tokenizer, on_text)
    output = _generate(lm, ids, torch.ones_like(ids), max_new_tokens, temperature, streamer)
    new = output[0, ids.shape[1] :]
    ended = bool((new == lm.tokenizer.eos_token_id).any())
    text = clean(lm.tokenizer.decode(new, skip_special_tokens=True)).strip()
    first = (streamer.first or time.perf_counter()) - started
    return Answer(text, len(new), time.perf_counter() - started, first, ended)


def answer_batch(lm: LanguageModel, conversations: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[str]:
    """Greedy answers to several conversations at once (padded on the left)."""
    rows = [prompt_ids(messages, lm.tokenizer) for messages in conversations]
    length = max(map(len, rows))
    ids = torch.tensor([[lm.tokenizer.eos_token_id] * (length - len(row)) + row for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    output = _generate(lm, ids, mask, max_new_tokens, 0.0, None)
    texts = lm.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return [clean(text).strip() for text in texts]


def _generate(
    lm: LanguageModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    temperature: float,
    streamer: _Streamer | None,
) -> torch.Tensor:
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    try:
        with torch.inference_mode():
            output: torch.Tensor = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=lm.tokenizer.eos_token_id,
                eos_token_id=lm.tokenizer.eos_token_id,
                streamer=streamer,
                **sampling,
            )
    except torch.OutOfMemoryError:
        raise MachineError("out of memory while answering", hint="start a new conversation") from None
    return output
