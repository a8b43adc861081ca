"""Speed of the chat's engines beside transformers in float32, in turns within one run, and the loss llama.cpp gives.

Usage: python benchmarks/chat/engines.py WORKSPACE [--questions N] [--busy N] [--examples N]

WORKSPACE has a round with the embedded base. Tokens a second are of whole answers, reading the question included.
`--busy` starts that many processes that never rest. `--examples` compares held-out losses, base and adapter, with those
of PEFT in bfloat16.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from fedmed_cli.adapters import gate
from fedmed_cli.data import examples
from fedmed_cli.evaluation import measuring
from fedmed_cli.models import bases, bundled_base, language_model
from fedmed_cli.models.engines.engine import Sampling
from fedmed_cli.models.engines.llama_cpp import LlamaCpp
from fedmed_cli.models.engines.transformers_engine import TransformersEngine
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


@contextlib.contextmanager
def busy(count):
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def plain_generate(lm, ids, count):
    """How many tokens transformers' own greedy generation gives, without prompt lookup."""
    tensor, eos = torch.tensor([ids]), lm.tokenizer.eos_token_id
    with torch.inference_mode():
        output = lm.model.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=count, do_sample=False,
            pad_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
    return output.shape[1] - len(ids)


def engine_tokens(engine, ids, adapter, count):
    return sum(piece.num_tokens for piece in engine.generate(ids, adapter, Sampling(count)))


def peft_losses(lm, encoded):
    """Mean loss a supervised token of each example."""
    losses = []
    for item in encoded:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([item.ids])).logits[0, item.num_prompt - 1 : -1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(item.ids[item.num_prompt :]))))
    return losses


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="at most, where the model does not end itself")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--examples", type=int, default=0)
    options = parser.parse_args()
    place = Workspace(options.workspace)
    plan = place.read_plan()
    local = bases.find_for_plan(plan.base, None, None, print)
    adapter = gate.read_global(place.global_adapter(place.newest_round()), plan).adapter
    llama = LlamaCpp(bundled_base.ensure_gguf(bases.cache_folder(), None, print), local)
    llama.prepare([adapter])
    reference = language_model.load(local, "cpu")
    reference.model.float()
    reference.use(adapter)
    whole = TransformersEngine(language_model.load(local, "cpu"))
    ways = {
        "transformers generate, float32": lambda ids: plain_generate(reference, ids, options.tokens),
        f"engine {whole.description}": lambda ids: engine_tokens(whole, ids, adapter, options.tokens),
        f"engine {llama.description}": lambda ids: engine_tokens(llama, ids, adapter, options.tokens),
    }
    speeds = {name: [] for name in ways}
    with busy(options.busy):
        for question in QUESTIONS[: options.questions]:
            ids = prompt_ids(prompt_messages(plan.prompt, question), llama.tokenizer)
            for name, way in ways.items():
                started = time.perf_counter()
                speeds[name].append(way(ids) / (time.perf_counter() - started))
    first = next(iter(speeds.values()))
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
        print(f"{name:70} {statistics.median(found):6.1f} tokens/s, {ratio:.2f} x", flush=True)
    if options.examples:
        rows = measuring.sample(examples.read_jsonl(place.data / "test.jsonl"), options.examples)
        encoded = [item for row in rows if (item := encode(row, plan.prompt, llama.tokenizer, 512))]
        for name, which in (("base", None), ("adapter", adapter)):
            whole.lm.use(which)
            expected = peft_losses(whole.lm, encoded)
            found = [-statistics.mean(llama.log_probabilities(item.ids, item.num_prompt, which)) for item in encoded]
            differences = [a - b for a, b in zip(found, expected, strict=True)]
            print(
                f"loss of {len(encoded)} answers, {name}: PEFT in {str(whole.lm.dtype).removeprefix('torch.')} "
                f"{statistics.mean(expected):.4f}, llama.cpp {statistics.mean(found):.4f}, mean difference "
                f"{statistics.mean(differences):+.4f}, largest {max(map(abs, differences)):.4f}",
                flush=True,
            )
    llama.close()


if __name__ == "__main__":
    main()
