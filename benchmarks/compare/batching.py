"""Useful tokens a second of `measuring.measure` beside plain loops of batch 8 with padding.

Usage: python benchmarks/compare/batching.py TEST.jsonl|lognormal [examples [repeats]]
All measure the same examples with the embedded base in one run, by turns, so that what else the machine does meets
all of them. Useful tokens are those of prompts and answers, without padding. One plain loop pads to the longest of
its 8, one to the longest of all (as tokenizing a whole set at once does). `lognormal` draws lengths with a long tail
(median 190 tokens, cut at 1024), as answers have that nobody shortened.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from fedmed_cli.data import examples
from fedmed_cli.evaluation import measuring
from fedmed_cli.models import bases, bundled_base, language_model, prompts
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.plan import Prompt


def plain_loop(lm, encoded, longest=None):
    """What one writes first: batches of 8 in the order of the file, padded, with a mask, loss from all logits."""
    nll = []
    with torch.inference_mode():
        for start in range(0, len(encoded), 8):
            batch = encoded[start : start + 8]
            length = longest or max(len(one.ids) for one in batch)
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


def make_set(lm, name, number):
    """Encoded examples of a file, or random tokens of lengths with a long tail."""
    if name != "lognormal":
        rows = measuring.sample(examples.read_jsonl(Path(name)), number)
        return [prompts.encode(row, Prompt(), lm.tokenizer, 1024) for row in rows]
    generator = np.random.Generator(np.random.Philox(1))
    lengths = np.clip(np.exp(generator.normal(np.log(190), 0.8, number)), 50, 1024).astype(int)
    return [Encoded(tuple(map(int, generator.integers(5, 40_000, length))), 35, False) for length in lengths]


def main(name, number="64", repeats="2"):
    lm = language_model.load(bases.find(bundled_base.NAME, None, None, print), "cpu", print)
    encoded = make_set(lm, name, int(number))
    lengths = np.array([len(one.ids) for one in encoded])
    useful, longest = int(lengths.sum()), int(lengths.max())
    print(f"{number} examples, {useful} tokens; length {lengths.min()} to {longest}, median {np.median(lengths):g}")
    ways = {
        "measure": lambda: measuring.measure(lm, None, encoded).nll,
        "plain, longest of 8": lambda: plain_loop(lm, encoded),
        "plain, longest of all": lambda: plain_loop(lm, encoded, longest),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(int(repeats)):
        found = {}
        for way, run in ways.items():
            began = time.perf_counter()
            found[way] = run()
            rates[way].append(useful / (time.perf_counter() - began))
        for way, nll in found.items():
            assert np.allclose(nll, found["measure"], rtol=1e-3 if lm.dtype == torch.float32 else 3e-2), way
            assert abs(nll.sum() / found["measure"].sum() - 1) < 2e-3, way
    for way, values in rates.items():
        ratio = np.median(np.array(rates["measure"]) / np.array(values))
        print(f"{way}: {np.median(values):.0f} tokens/s; measure is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main(*sys.argv[1:])
