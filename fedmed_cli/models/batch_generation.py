"""Answers to many questions at once, for a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedmed_cli.errors import MachineError
from fedmed_cli.events import Progress
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import prompt_ids
from fedmed_cli.text import clean

BATCH_ANSWERS = 16


@dataclass(frozen=True)
class BatchAnswer:
    """One of several answers made at once. `finished`: the model ended it itself."""

    text: str
    finished: bool


def answer_many(
    lm: LanguageModel,
    conversations: Sequence[list[dict[str, str]]],
    max_new_tokens: int,
    progress: Progress | None = None,
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
        raise MachineError(
            "out of memory while answering", hint="take a smaller --max-new-tokens, or --device cpu"
        ) from None
    return output
