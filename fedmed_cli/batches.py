"""Token ids into right-padded batches, and the loss at answer tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmed_cli.examples import Encoded
from fedmed_cli.models import LanguageModel


def nll_per_example(lm: LanguageModel, batch: Sequence[Encoded]) -> torch.Tensor:
    """Summed negative log-likelihood of each example's supervised tokens, in nats: (batch,).

    Rows are padded on the right. Attention is causal, so no position sees padding and no mask is needed;
    logits are computed only from the first to the last position that predicts a label.
    """
    length = max(len(example.ids) for example in batch)
    first = min(example.num_prompt for example in batch) - 1
    ids = torch.zeros((len(batch), length), dtype=torch.long)  # (batch, length); 0 pads, no label is there
    labels = torch.full((len(batch), length), -100, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.num_prompt : len(example.ids)] = torch.tensor(example.ids[example.num_prompt :])
    ids, labels = ids.to(lm.device), labels.to(lm.device)
    positions = torch.arange(first, length - 1, device=lm.device)  # position t predicts token t + 1
    logits = lm.model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels[:, first + 1 :], ignore_index=-100, reduction="none"
    )
    return nll.sum(dim=1)
