"""The forward passes of a training step: which examples go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedmed_cli.models.fused_ops import SAVED_ROWS
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.training.options import TrainingOptions

MAX_PADDING = 0.05  # of a forward pass on a CPU, where positions cost more than passes


def passes_of_step(lm: LanguageModel, batch: Sequence[Encoded], options: TrainingOptions) -> Iterator[list[Encoded]]:
    """The forward passes of a step on this model's device."""
    if lm.device.type != "cpu":
        return forward_passes(batch, options, 1.0)
    # Two long examples are no faster together, but take twice the memory.
    return forward_passes(batch, options, None if lm.packs else MAX_PADDING, SAVED_ROWS[lm.dtype])


def forward_passes(
    batch: Sequence[Encoded], options: TrainingOptions, max_padding: float | None, max_positions: int | None = None
) -> Iterator[list[Encoded]]:
    """A step's examples in forward passes, the longest first.

    A pass keeps to the batch size and the token budget, or else `max_positions`; one example always fits.
    Examples are padded to the longest, at most that share of a pass; where `max_padding` is None they are
    packed end to end.
    """
    budget = options.max_batch_tokens or max_positions
    left = sorted(batch, key=lambda example: len(example.ids), reverse=True)
    while left:
        longest = total = len(left[0].ids)
        size = 1
        for example in left[1 : options.per_device_train_batch_size]:
            tokens = total + len(example.ids)
            positions = tokens if max_padding is None else longest * (size + 1)
            if max_padding is not None and tokens < (1 - max_padding) * positions:
                break
            if budget and positions > budget:
                break
            total = tokens
            size += 1
        yield left[:size]
        left = left[size:]
