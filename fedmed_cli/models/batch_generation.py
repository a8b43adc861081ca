"""Answers from a model: streamed for a chat, or in a batch for a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedmed_cli.chat.decoding import Decoder, generate
from fedmed_cli.data.examples import prompt_ids
from fedmed_cli.errors import MachineError
from fedmed_cli.escapes import clean, without_open_end
from fedmed_cli.models.language_model import LanguageModel

BATCH_ANSWERS = 16


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


@dataclass(frozen=True)
class BatchAnswer:
    """One of several answers made at once. `finished`: the model ended it itself."""

    text: str
    finished: bool


def answer_many(
    lm: LanguageModel,
    conversations: Sequence[list[dict[str, str]]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[BatchAnswer]:
    """Greedy answers to many conversations, 16 at once, those of like length together (padded on the left)."""
    rows = [prompt_ids(messages, lm.tokenizer) for messages in conversations]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    eos = lm.tokenizer.eos_token_id
    answers = [BatchAnswer("", False)] * len(rows)
    for start in range(0, len(order), BATCH_ANSWERS):
        batch = order[start : start + BATCH_ANSWERS]
        length = len(rows[batch[-1]])
        ids = torch.tensor([[eos] * (length - len(rows[i])) + rows[i] for i in batch], device=lm.device)
        mask = torch.tensor([[0] * (length - len(rows[i])) + [1] * len(rows[i]) for i in batch], device=lm.device)
        output = _generate(lm, ids, mask, max_new_tokens)[:, length:]
        texts = lm.tokenizer.batch_decode(output, skip_special_tokens=True)
        ended = (output == eos).any(dim=1).tolist()
        for i, text, finished in zip(batch, texts, ended, strict=True):
            answers[i] = BatchAnswer(clean(text).strip(), finished)
        if progress:
            progress(start + len(batch), len(order))
    return answers


def _generate(lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    try:
        with torch.inference_mode():
            output: torch.Tensor = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=lm.tokenizer.eos_token_id,
                eos_token_id=lm.tokenizer.eos_token_id,
                do_sample=False,
            )
    except torch.OutOfMemoryError:
        raise MachineError("out of memory while answering", hint="start a new conversation") from None
    return output
