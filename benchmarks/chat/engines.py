"""Speed of the chat's engines beside transformers in float32, in turns within one run, and the loss llama.cpp gives.

Usage: python benchmarks/chat/engines.py WORKSPACE [--questions N] [--busy N] [--examples N]

WORKSPACE has a round with the embedded base. Tokens a second are of whole answers, reading the question included.
`--busy` starts that many processes that never rest. `--examples` compares held-out losses, base and adapter, with those
of PEFT in bfloat16.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fedmed_cli.adapters import gate
from fedmed_cli.data import examples
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.models.engines.choose import choose_engine
from fedmed_cli.models.engines.engine import Sampling
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


def open_workspace(folder):
    """Plan, base model and newest global adapter of a workspace."""
    place = Workspace(folder)
    plan = place.read_plan()
    return plan, BaseModel(device="cpu"), gate.read_global(place.global_adapter(place.newest_round()), plan).adapter


def start(way, folder, count):
    """Make `answer` of this process answer in one way, with `count` tokens at most, and give how many they were."""
    global answer, description
    plan, model, adapter = open_workspace(folder)
    if way == "generate":
        model = model.load(plan.base)
        model.model.float()
        model.use(adapter)
        description = "transformers generate, float32"
    else:
        model = choose_engine(model, plan.base, way, None, [adapter])
        description = f"engine {model.description}"

    def answer(question):
        ids = prompt_ids(prompt_messages(plan.prompt, question), model.tokenizer)
        if way == "generate":
            return plain_generate(model, ids, count)
        return sum(piece.num_tokens for piece in model.generate(ids, adapter, Sampling(count)))


def speed(question):
    """Tokens a second of one answer of this process."""
    started = time.perf_counter()
    return answer(question) / (time.perf_counter() - started)


def describe():
    return description


def plain_generate(lm, ids, count):
    """How many tokens transformers' own greedy generation gives, without prompt lookup."""
    import torch

    tensor, eos = torch.tensor([ids]), lm.tokenizer.eos_token_id
    with torch.inference_mode():
        output = lm.model.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=count, do_sample=False,
            pad_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
    return output.shape[1] - len(ids)


def compare_speeds(options):
    """Each way in a process of its own: in one, they would share OpenMP's threads."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, start, (way, options.workspace, options.tokens)))
            for way in ("generate", "transformers", "llama.cpp")
        ]
        names = [process.submit(describe).result() for process in processes]
        speeds = {name: [] for name in names}
        with busy(options.busy):
            for question in QUESTIONS[: options.questions]:
                for name, process in zip(names, processes, strict=True):
                    speeds[name].append(process.submit(speed, question).result())
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found, speeds[names[0]], strict=True))
        print(f"{name:70} {statistics.median(found):6.1f} tokens/s, {ratio:.2f} x", flush=True)


def peft_losses(lm, encoded):
    """Mean loss a supervised token of each example."""
    import torch

    losses = []
    for item in encoded:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([item.ids])).logits[0, item.num_prompt - 1 : -1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(item.ids[item.num_prompt :]))))
    return losses


def compare_losses(options):
    from fedmed_cli.evaluation import measuring  # with torch, which no process of llama.cpp loads

    plan, model, adapter = open_workspace(options.workspace)
    lm = model.load(plan.base)
    llama = choose_engine(model, plan.base, "llama.cpp", None, [adapter])
    rows = measuring.sample(examples.read_jsonl(Workspace(options.workspace).data / "test.jsonl"), options.examples)
    encoded = [item for row in rows if (item := encode(row, plan.prompt, llama.tokenizer, 512))]
    for name, which in (("base", None), ("adapter", adapter)):
        lm.use(which)
        expected = peft_losses(lm, encoded)
        found = [-statistics.mean(llama.log_probabilities(item.ids, item.num_prompt, which)) for item in encoded]
        differences = [a - b for a, b in zip(found, expected, strict=True)]
        print(
            f"loss of {len(encoded)} answers, {name}: PEFT in {str(lm.dtype).removeprefix('torch.')} "
            f"{statistics.mean(expected):.4f}, llama.cpp {statistics.mean(found):.4f}, mean difference "
            f"{statistics.mean(differences):+.4f}, largest {max(map(abs, differences)):.4f}",
            flush=True,
        )
    llama.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="at most, where the model does not end itself")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--examples", type=int, default=0)
    options = parser.parse_args()
    compare_speeds(options)
    if options.examples:
        compare_losses(options)


if __name__ == "__main__":
    main()
