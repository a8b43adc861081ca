"""Decoding speed, text and loss of the chat's decoder beside transformers, in one interleaved run.

Usage: python benchmarks/chat/decoding.py WORKSPACE [--questions N] [--examples N] [--rounds N]

WORKSPACE has a round. Every line but the losses is measured in turns, so that what else runs meets all alike.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from fedmed_cli.adapters import gate
from fedmed_cli.chat import decoding
from fedmed_cli.chat.prompt_lookup import MAX_DRAFT
from fedmed_cli.data import examples
from fedmed_cli.evaluation import measuring
from fedmed_cli.models import language_model
from fedmed_cli.models.bases import find_for_plan
from fedmed_cli.models.prompts import encode, prompt_ids, prompt_messages
from fedmed_cli.workspace import Workspace

QUESTIONS = (
    "What are the warning signs of a stroke?", "How is high blood pressure treated?", "What causes asthma?",
    "What is anaemia?", "How do vaccines work?", "What is a balanced diet?", "How is type 2 diabetes diagnosed?",
    "What are the symptoms of flu?", "Who is at risk for osteoporosis?", "What is a migraine?",
    "How is eczema treated?", "What causes kidney stones?", "What is coeliac disease?", "How do antibiotics work?",
    "What is glaucoma?", "How can falls be prevented?", "What are gallstones?", "What is gout?",
    "What are the symptoms of hepatitis A?", "How much sleep do adults need?",
)  # fmt: skip


def transformers_tokens(model, ids, count, eos):
    tensor = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=count, do_sample=False,
            pad_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
    tokens = output[0, len(ids) :].tolist()
    return tokens[:-1] if tokens[-1] == eos else tokens


def own_tokens(decoder, ids, count, eos, max_draft=MAX_DRAFT):
    decoder._ids, decoder.max_draft = [], max_draft
    return list(decoding.generate(decoder, ids, max_new_tokens=count, temperature=0.0, stop=frozenset({eos})))


def loss(decoder, encoded):
    """Mean loss an answer token, every product by the kernel that decodes (so no more than 4 rows at once)."""
    nll, tokens = 0.0, 0
    with torch.inference_mode():
        for item in encoded:
            states = [decoder._forward(item.ids[i : i + 4], i) for i in range(0, len(item.ids), 4)]
            x = torch.nn.functional.rms_norm(torch.cat(states), decoder._norm.shape, decoder._norm, decoder._eps)
            rows = x[item.num_prompt - 1 : -1]
            logits = torch.cat([decoder._head(rows[i : i + 4]).float() for i in range(0, len(rows), 4)])
            labels = torch.tensor(item.ids[item.num_prompt :])
            nll += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            tokens += len(rows)
    return nll / tokens


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="at most, where the model does not end itself")
    options = parser.parse_args()
    place = Workspace(options.workspace)
    plan = place.read_plan()
    local = find_for_plan(plan.base, None, None, lambda text: None)
    adapter = gate.read_global(place.global_adapter(place.newest_round()), plan).adapter
    # Float32 whatever the CPU: that is what the goal is measured against.
    reference = language_model.load(local, "cpu")
    reference.model.float()
    reference.use(adapter)
    small = decoding.MergedDecoder(language_model.load(local, "cpu"), 2048, is_int8=True)
    whole = decoding.MergedDecoder(language_model.load(local, "cpu"), 2048, is_int8=False)
    small.use(adapter)
    whole.use(adapter)
    eos = reference.tokenizer.eos_token_id
    prompts = [
        prompt_ids(prompt_messages(plan.prompt, question), reference.tokenizer)
        for question in QUESTIONS[: options.questions]
    ]
    ways = {
        "transformers generate, float32, adapter unmerged": lambda ids: transformers_tokens(
            reference.model, ids, options.tokens, eos
        ),
        "merged, whole weights, no drafts": lambda ids: own_tokens(whole, ids, options.tokens, eos, 0),
        "merged, int8 weights, no drafts": lambda ids: own_tokens(small, ids, options.tokens, eos, 0),
        "merged, int8 weights, drafts": lambda ids: own_tokens(small, ids, options.tokens, eos),
    }
    seconds = {name: [] for name in ways}
    texts = {name: [] for name in ways}
    for _ in range(options.rounds):
        for ids in prompts:
            for name, way in ways.items():
                started = time.perf_counter()
                tokens = way(ids)
                seconds[name].append((time.perf_counter() - started) / max(len(tokens), 1))
                if len(texts[name]) < len(prompts):
                    texts[name].append(tokens)
    first = next(iter(ways))
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], times, strict=True)]
        pairs = list(zip(texts[first], texts[name], strict=True))
        alike = [decoding._common(x, [*y, -1]) for x, y in pairs]
        speed = 1 / statistics.median(times)
        print(f"{name:50} {speed:6.1f} tokens/s, {statistics.median(ratios):.2f} x (median of {len(times)})")
        print(
            f"  the same text for {sum(x == y for x, y in pairs)} of {len(pairs)} questions; on average the first "
            f"{statistics.mean(alike):.0f} of {statistics.mean(len(x) for x, _ in pairs):.0f} tokens are alike",
            flush=True,
        )
    if options.examples:
        rows = measuring.sample(examples.read_jsonl(place.data / "test.jsonl"), options.examples)
        encoded = [item for row in rows if (item := encode(row, plan.prompt, reference.tokenizer, 512))]
        print(f"held-out loss on {len(encoded)} examples: whole {loss(whole, encoded):.4f}", flush=True)
        print(f"                                  int8  {loss(small, encoded):.4f}", flush=True)


if __name__ == "__main__":
    main()
