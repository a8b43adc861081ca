"""Useful tokens a second of `evaluation.measure` beside a plain loop of batch 8, padded to the longest.

Usage: python benchmarks/compare/batching.py TEST.jsonl [examples [repeats]]
Both measure the same examples with the embedded base in one run, by turns, so that what else the machine does
meets both. Useful tokens are those of prompts and answers, without padding.
"""

import sys
import time

import numpy as np
import torch

from fedmed_cli import bases, embedded, evaluation, examples, models
from fedmed_cli.records import Prompt


def plain_loop(lm, encoded):
    """What one writes first: batches of 8 in the order of the file, padded, with a mask, loss from all logits."""
    nll = []
    with torch.inference_mode():
        for start in range(0, len(encoded), 8):
            batch = encoded[start : start + 8]
            length = max(len(one.ids) for one in batch)
            ids = torch.tensor([[*one.ids, *[0] * (length - len(one.ids))] for one in batch])
            mask = torch.tensor([[1] * len(one.ids) + [0] * (length - len(one.ids)) for one in batch])
            labels = torch.full_like(ids, -100)
            for row, one in enumerate(batch):
                labels[row, one.num_prompt : len(one.ids)] = ids[row, one.num_prompt : len(one.ids)]
            logits = lm.model(input_ids=ids, attention_mask=mask).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
            )
            nll += losses.sum(dim=1).tolist()
    return np.array(nll)


def main(path, number=64, repeats=2):
    lm = models.load(bases.find(embedded.NAME, None, None, print), "cpu", print)
    rows = evaluation.choose(examples.read_jsonl(path), number)
    encoded = [examples.encode(row, Prompt(), lm.tokenizer, 1024) for row in rows]
    lengths = np.array([len(one.ids) for one in encoded])
    useful = int(lengths.sum())
    print(
        f"{number} examples, {useful} tokens; length {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"
    )
    ratios = []
    for turn in range(repeats):
        began = time.perf_counter()
        ours = evaluation.measure(lm, None, encoded).nll
        middle = time.perf_counter()
        plain = plain_loop(lm, encoded)
        ended = time.perf_counter()
        assert np.allclose(ours, plain, rtol=1e-3), np.abs(ours - plain).max()
        rates = useful / (middle - began), useful / (ended - middle)
        ratios.append(rates[0] / rates[1])
        print(f"turn {turn + 1}: measure {rates[0]:.0f}, plain loop {rates[1]:.0f} tokens/s, ratio {ratios[-1]:.2f}")
    print(f"ratio {np.median(ratios):.2f} (median)")


if __name__ == "__main__":
    from pathlib import Path

    main(Path(sys.argv[1]), *(int(value) for value in sys.argv[2:]))
