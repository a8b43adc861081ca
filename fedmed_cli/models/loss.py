"""Token ids into the rows of a forward pass, and the loss at their answer tokens, without ever holding all logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from fedmed_cli.models.frozen import FrozenMatrices
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded

CHUNK = 128  # label positions whose logits exist at a time
TINY = 1e-30  # a probability whose logarithm is taken another way
# Packed examples begin at multiples of EXAMPLE_STEP, and rows have multiples of ROW_STEP positions: oneDNN prepares and
# keeps each shape of a product, half a millisecond and some hundred kilobytes that then lie between large blocks.
EXAMPLE_STEP, ROW_STEP = 16, 32


def nll_per_example(lm: LanguageModel, batch: Sequence[Encoded]) -> torch.Tensor:
    """Summed negative log-likelihood of each example's supervised tokens, in nats: (batch,), float32.

    Where the model packs (attention.py), examples lie end to end in one row, each counting its positions from
    0. Elsewhere each has a row, padded on the right: attention is causal, so no position sees padding and no
    mask is needed. Only positions that predict a label go through the output head.
    """
    starts = example_starts(lm, batch)
    flat = torch.zeros(starts[-1], dtype=torch.long)  # 0 pads, nothing reads it
    predicting: list[int] = []
    labels: list[int] = []
    for start, example in zip(starts, batch, strict=False):
        flat[start : start + len(example.ids)] = torch.tensor(example.ids)
        # position t predicts token t + 1
        predicting += range(start + example.num_prompt - 1, start + len(example.ids) - 1)
        labels += example.ids[example.num_prompt :]
    supervised = torch.tensor([example.num_supervised for example in batch])
    owners = torch.arange(len(batch)).repeat_interleave(supervised).to(lm.device)
    positions = torch.tensor(predicting, device=lm.device)
    label_ids = torch.tensor(labels, device=lm.device)
    ids = flat.view(1 if lm.packs else len(batch), -1)
    inputs = {"input_ids": ids.to(lm.device), "use_cache": False}
    if lm.packs:
        lengths = [stop - start for start, stop in itertools.pairwise(starts)]
        inputs["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None].to(lm.device)
    if lm.head is not None:
        hidden = lm.decoder(**inputs).last_hidden_state.flatten(0, 1)[positions]
        matrices = lm.matrices or FrozenMatrices()
        nll: torch.Tensor = _LabelLoss.apply(hidden, lm.head.weight, label_ids, matrices)  # type: ignore[no-untyped-call]
    else:
        logits = lm.model(**inputs).logits.flatten(0, 1)[positions]
        nll = torch.nn.functional.cross_entropy(logits.float(), label_ids, reduction="none")
    return torch.zeros(len(batch), device=lm.device).index_add(0, owners, nll)


def example_starts(lm: LanguageModel, batch: Sequence[Encoded]) -> list[int]:
    """Where each example begins among all positions of a forward pass, and at the end how many those are.

    What lies between an example and the next one pads it; where the model packs, more padding may follow the last.
    """
    longest = max(len(example.ids) for example in batch)
    lengths = [_aligned(lm, len(example.ids)) if lm.packs else longest for example in batch]
    starts = [0, *itertools.accumulate(lengths)]
    if lm.packs and starts[-1] % ROW_STEP:
        starts.append(-(-starts[-1] // ROW_STEP) * ROW_STEP)
    return starts


def _aligned(lm: LanguageModel, length: int) -> int:
    """An example's length with its padding in a packed row, within the positions that the model knows."""
    known = getattr(lm.decoder.config, "max_position_embeddings", None) or length
    return max(length, min(-(-length // EXAMPLE_STEP) * EXAMPLE_STEP, known))


class _LabelLoss(torch.autograd.Function):
    """Cross-entropy of a frozen output head at N positions: hidden (N, h), weight (vocabulary, h) -> (N,).

    The gradient by `hidden` is made beside the loss, chunk by chunk, so that the logits, which are by far the
    largest tensor of a step, are computed once and never kept. All passes share the memory of `matrices`: fresh
    tensors of this size cost as much as the softmax, and leave holes in the heap.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, matrices: FrozenMatrices
    ) -> torch.Tensor:
        head = matrices.of(weight, is_packed=True)
        shape = CHUNK, len(weight)
        all_logits = matrices.buffer("logits", shape, hidden.dtype, hidden.device)
        all_shares = matrices.buffer("shares", shape, torch.float32, hidden.device)
        nll = torch.empty(len(labels), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            column = labels[part, None]
            logits, shares = all_logits[: len(column)], all_shares[: len(column)]
            torch.mm(hidden[part], weight.T, out=logits)
            torch.softmax(shares.copy_(logits), dim=1, out=shares)
            at_label = shares.gather(1, column).squeeze(1)
            nll[part] = -at_label.log()
            if float(at_label.min()) < TINY:  # no logarithm of what float32 cannot hold
                exact = logits.float()
                nll[part] = (torch.logsumexp(exact, dim=1, keepdim=True) - exact.gather(1, column)).squeeze(1)
            if gradient is not None:  # d nll / d logits = softmax - one at the label
                shares.scatter_add_(1, column, shares.new_full(column.shape, -1.0))
                gradient[part] = head.backward(logits.copy_(shares))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None, None
