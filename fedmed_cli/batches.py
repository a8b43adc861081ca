"""Token ids into right-padded batches, and the loss at answer tokens alone, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedmed_cli.examples import Encoded
from fedmed_cli.models import LanguageModel

CHUNK = 128  # label positions whose logits exist at a time


def nll_per_example(lm: LanguageModel, batch: Sequence[Encoded]) -> torch.Tensor:
    """Summed negative log-likelihood of each example's supervised tokens, in nats: (batch,), float32.

    Rows are padded on the right. Attention is causal, so no position sees padding and no mask is needed.
    Only positions that predict a label go through the output head.
    """
    length = max(len(example.ids) for example in batch)
    ids = torch.zeros((len(batch), length), dtype=torch.long)  # (batch, length); 0 pads, nothing reads it
    rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        rows += [row] * example.num_supervised
        positions += range(example.num_prompt - 1, len(example.ids) - 1)  # position t predicts token t + 1
        labels += example.ids[example.num_prompt :]
    where = torch.tensor(rows, device=lm.device)
    picked = torch.tensor(positions, device=lm.device)
    wanted = torch.tensor(labels, device=lm.device)
    ids = ids.to(lm.device)
    if lm.head is not None:
        hidden = lm.decoder(input_ids=ids, use_cache=False).last_hidden_state[where, picked]
        nll: torch.Tensor = _LabelLoss.apply(hidden, lm.head.weight, wanted)  # type: ignore[no-untyped-call]
    else:
        logits = lm.model(input_ids=ids, use_cache=False).logits[where, picked]
        nll = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
    return torch.zeros(len(batch), device=lm.device).index_add(0, where, nll)


class _LabelLoss(torch.autograd.Function):
    """Cross-entropy of a frozen output head at N positions: hidden (N, h), weight (vocabulary, h) -> (N,).

    The gradient by `hidden` is made beside the loss, chunk by chunk, so that the logits, which are by far the
    largest tensor of a step, are computed once and never kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nll = torch.empty(len(labels), device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.mm(hidden[part], weight.T).float()  # (chunk, vocabulary)
            column = labels[part, None]
            normaliser = torch.logsumexp(logits, dim=1, keepdim=True)
            nll[part] = (normaliser - logits.gather(1, column)).squeeze(1)
            if gradient is not None:  # d nll / d logits = softmax - one at the label
                logits.sub_(normaliser).exp_()
                logits.scatter_add_(1, column, logits.new_full(column.shape, -1.0))
                gradient[part] = torch.mm(logits.to(weight.dtype), weight)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None
