"""What a step of DP-SGD costs beside a plain step on the same examples: time and memory, in turns, in one run.

    python benchmarks/privacy/cost.py $MEDQUAD [--opacus FOLDER] [--units 32] [--steps 4] [--repeats 3]

FOLDER is where `pip install --target FOLDER --no-deps opacus opt_einsum` put Opacus; its ghost clipping then trains the
same model as transformers and PEFT make it. Each way runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

WAYS = ("plain", "DP-SGD", "Opacus ghost clipping")


def load(path, number):
    from fedmed_cli.data.examples import read_examples
    from fedmed_cli.data.sources import Source
    from fedmed_cli.models import bases, language_model, prompts
    from fedmed_cli.records.lora import Lora
    from fedmed_cli.records.plan import Plan, Prompt, Sites, Training

    plan = Plan(bases.describe("smollm2-135m", None, print), Lora(), Prompt(), Training(), Sites(("A",), 1))
    lm = language_model.load(bases.find_for_plan(plan.base, None, None, print), "cpu")
    rows = read_examples(Source([path], limit=number))
    return plan, lm, [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]


def ours(lm, encoded, way, steps):
    """Seconds of each step, on fixed examples, so that both ways do the same work."""
    import torch

    from fedmed_cli.models.fast_path import LORA, OPERATIONS, fast_path
    from fedmed_cli.training import loop
    from fedmed_cli.training.options import TrainingOptions
    from fedmed_cli.training.private_steps import PrivateSteps

    options = TrainingOptions(per_device_train_batch_size=len(encoded))
    parameters = lm.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    private = PrivateSteps(tuple((one,) for one in encoded), 1.0, 1.0, 1.0)
    operations = [name for name in OPERATIONS if name != LORA] if way == "DP-SGD" else []
    loop.settle_heap()
    lm.model.train()
    with fast_path(lm, *operations):
        for _ in range(steps + 1):
            began = time.perf_counter()
            if way == "plain":
                loop._add_gradients(lm, encoded, options)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            else:
                private.add_gradients(lm, parameters, private.units, options)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield time.perf_counter() - began


def opacus(lm, encoded, folder, steps):
    """Ghost clipping over padded forward passes of two examples, which is the fastest that fits the same memory."""
    sys.path.insert(0, folder)
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    lm.model.train()
    parameters = lm.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    model = GradSampleModuleFastGradientClipping(lm.model, max_grad_norm=1.0, use_ghost_clipping=True, strict=False)

    class Criterion:
        reduction = "mean"

        def __call__(self, logits, labels):
            nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
            return nll.sum(1) / (labels != -100).sum(1)

    class Optimizer:
        """What the loss asks of Opacus' optimiser."""

        loss_reduction = "mean"

        def zero_grad(self):
            optimizer.zero_grad(set_to_none=True)

    batches = [sorted(encoded, key=lambda one: -len(one.ids))[i : i + 2] for i in range(0, len(encoded), 2)]
    for _ in range(steps + 1):
        began = time.perf_counter()
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in batches:
            longest = max(len(one.ids) for one in batch)
            ids, labels = torch.zeros(len(batch), longest, dtype=torch.long), torch.full((len(batch), longest), -100)
            for row, one in enumerate(batch):
                ids[row, : len(one.ids)] = torch.tensor(one.ids)
                labels[row, one.num_prompt - 1 : len(one.ids) - 1] = torch.tensor(one.ids[one.num_prompt :])
            logits = model(input_ids=ids, use_cache=False).logits
            loss = DPLossFastGradientClipping(model, Optimizer(), Criterion(), "mean")(logits, labels)
            loss.backward()
            for sum_, parameter in zip(total, parameters, strict=True):
                sum_ += parameter.grad
            optimizer.zero_grad(set_to_none=True)
        for sum_, parameter in zip(total, parameters, strict=True):
            parameter.grad = (sum_ + torch.randn_like(sum_)) / len(encoded)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter() - began


def one_way(arguments):
    import torch

    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter

    torch.manual_seed(0)
    plan, lm, encoded = load(arguments.dataset, arguments.units)
    lm.use(plan_adapter(plan, initial_factors(plan)))
    if arguments.way == WAYS[2]:
        seconds = list(opacus(lm, encoded, arguments.opacus, arguments.steps))
    else:
        seconds = list(ours(lm, encoded, arguments.way, arguments.steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "mb": peak / 1024}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--opacus")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        one_way(arguments)
        return
    ways = WAYS if arguments.opacus else WAYS[:2]
    found = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way in ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[way].append(json.loads(output.splitlines()[-1]))
    plain = found["plain"]
    print("| way | seconds a step | time beside plain | memory, MB | memory beside plain |")
    print("| --- | --- | --- | --- | --- |")
    for way, runs in found.items():
        times = [run["seconds"] / other["seconds"] for run, other in zip(runs, plain, strict=True)]
        sizes = [run["mb"] / other["mb"] for run, other in zip(runs, plain, strict=True)]
        seconds = ", ".join(f"{run['seconds']:.2f}" for run in runs)
        print(
            f"| {way} | {seconds} | {', '.join(f'{t:.2f}' for t in times)} | {max(run['mb'] for run in runs):.0f} "
            f"| {', '.join(f'{s:.2f}' for s in sizes)} |"
        )


if __name__ == "__main__":
    main()
