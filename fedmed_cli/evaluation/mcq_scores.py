"""Log-probabilities of several continuations of one prompt, which the model reads only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.events import Progress
from fedmed_cli.intervals import Losses
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.models.prompts import Encoded

CACHE_TOKENS = 8192  # of repeated prompts at once


@dataclass(frozen=True)
class Continued:
    """A prompt with what may follow it, as token ids; no continuation is empty."""

    prompt: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]


def measure(
    lm: LanguageModel, adapter: Adapter | None, items: Sequence[Continued], progress: Progress | None = None
) -> Losses:
    """Negative log-likelihood of every continuation after its prompt, in nats, in the order of `items`."""
    lm.use(adapter)
    starts = np.cumsum([0, *(len(item.ends) for item in items)])
    nll = np.zeros(starts[-1])
    order = sorted(range(len(items)), key=lambda i: (len(items[i].ends), len(items[i].prompt)))
    done = 0
    with torch.inference_mode():
        while done < len(order):
            batch = [order[done]]
            for i in order[done + 1 :]:
                rows = (len(batch) + 1) * len(items[i].ends)
                if len(items[i].ends) != len(items[batch[0]].ends) or rows * len(items[i].prompt) > CACHE_TOKENS:
                    break
                batch.append(i)
            losses = _measure_batch(lm, [items[i] for i in batch]).double().cpu().numpy()
            for i, values in zip(batch, losses, strict=True):
                nll[starts[i] : starts[i + 1]] = values
            done += len(batch)
            if progress:
                progress(done, len(order))
    return Losses(nll, np.array([len(end) for item in items for end in item.ends]))


def _measure_batch(lm: LanguageModel, items: Sequence[Continued]) -> torch.Tensor:
    """Negative log-likelihoods (items, ends); all items have the same number of ends.

    Prompts are padded on the left, so that all end at one place; their keys and values are then repeated for each
    end, which is padded on the right. The first token of an end is predicted by the prompt's last position.
    """
    number, length = len(items[0].ends), max(len(item.prompt) for item in items)
    prompts = torch.tensor([[0] * (length - len(item.prompt)) + list(item.prompt) for item in items], device=lm.device)
    mask = torch.tensor(
        [[0] * (length - len(item.prompt)) + [1] * len(item.prompt) for item in items], device=lm.device
    )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = lm.model(input_ids=prompts, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    ends = [end for item in items for end in item.ends]
    longest = max(map(len, ends))
    if longest > 1 and not isinstance(output.past_key_values, transformers.DynamicCache):
        rows = [Encoded((*item.prompt, *end), len(item.prompt), False) for item in items for end in item.ends]
        return nll_per_example(lm, rows).view(len(items), number)  # no cache that could be repeated
    ids = torch.tensor([[*end, *[0] * (longest - len(end))] for end in ends], device=lm.device)  # (rows, longest)
    real = torch.tensor([[1] * len(end) + [0] * (longest - len(end)) for end in ends], device=lm.device)
    first = output.logits[:, -1:].float().repeat_interleave(number, dim=0)
    logits = (
        torch.cat([first, _later_logits(lm, output.past_key_values, mask, ids, number)], dim=1)
        if longest > 1
        else first
    )
    nll = token_nll(logits, ids)
    return (nll * real).sum(dim=1).view(len(items), number)


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token: (rows, length, vocabulary) and (rows, length) to (rows, length).

    Not by `cross_entropy` over a middle dimension: that adds up the vocabulary one by one in float32, and is wrong
    by 1e-4 nats a token at 49,152 words.
    """
    return logits.logsumexp(dim=2) - logits.gather(2, ids[..., None]).squeeze(2)


def _later_logits(lm: LanguageModel, cache: Any, mask: torch.Tensor, ids: torch.Tensor, number: int) -> torch.Tensor:
    """Logits that predict the second to the last token of each end: (rows, longest - 1, vocabulary)."""
    cache.batch_repeat_interleave(number)
    before = mask.repeat_interleave(number, dim=0)
    steps = torch.arange(ids.shape[1] - 1, device=lm.device)
    logits: torch.Tensor = lm.model(
        input_ids=ids[:, :-1],
        attention_mask=torch.cat([before, torch.ones_like(ids[:, :-1])], dim=1),
        position_ids=before.sum(dim=1, keepdim=True) + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits.float()
