"""Texts that nobody wrote: sampled from the base model at a high temperature, to be found again by an audit."""

from __future__ import annotations

import os

import torch

from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.text import clean

QUESTION_TOKENS, ANSWER_TOKENS = 12, 40
TEMPERATURE = 1.5
_AT_ONCE = 32


def sample_canaries(lm: LanguageModel, number: int) -> list[tuple[str, str]]:
    """`number` different pairs of question and answer by the plain base model, drawn anew each time.

    Near-likely text is memorised like a record would be, other than random letters (arXiv 2606.10481).
    """
    lm.use(None)
    found: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(int.from_bytes(os.urandom(8)) % 2**63)
        while len(found) < number:
            start = torch.full((min(_AT_ONCE, number), 1), lm.tokenizer.eos_token_id, device=lm.device)
            ids = lm.model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                min_new_tokens=QUESTION_TOKENS + ANSWER_TOKENS,
                max_new_tokens=QUESTION_TOKENS + ANSWER_TOKENS,
                pad_token_id=lm.tokenizer.eos_token_id,
            )[:, 1:]
            for row in ids:
                question, answer = (
                    clean(lm.tokenizer.decode(part, skip_special_tokens=True)).strip()
                    for part in (row[:QUESTION_TOKENS], row[QUESTION_TOKENS:])
                )
                if question and answer:
                    found.setdefault(question, answer)
    return list(found.items())[:number]
