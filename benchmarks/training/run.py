"""Training speed, memory and loss: fedmed, TRL's SFTTrainer (defaults, best setting here) and a plain PEFT loop.

    python benchmarks/training/run.py --dataset $MEDQUAD --steps 24 --seeds 0 1 2 [--trl FOLDER] > training.json
    python benchmarks/training/run.py --dataset $MEDQUAD --peak
    python benchmarks/training/run.py --dataset $MEDQUAD --profile

Same base, examples, batch of 2, steps, learning rate and LoRA. Each contender is a process of its own; they are
run in turn, once for each seed. Useful tokens are those of the examples, padding not counted; the first two
steps are not timed. FOLDER is where `pip install --target FOLDER --no-deps trl==1.16.0`
put TRL. The loss is measured by fedmed on the same 30 held-out examples, whoever trained. `--peak` compares the
time of a step's matrix products alone, run with the same shapes, with that of the whole step; `--profile` shows
where the time of fedmed's steps goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

R, ALPHA, RATE, BATCH, MAX_LENGTH = 8, 16, 2e-4, 2, 1024
UNTIMED = 2
CONTENDERS = ("fedmed", "plain PEFT loop", "TRL defaults", "TRL best")


def prepare(dataset, steps, seed):
    """The plan, the base in memory's folder, and the examples as text and as ids."""
    import gzip

    import transformers

    from fedmed_cli.data import examples
    from fedmed_cli.federation.plan import PlanOptions, make_plan
    from fedmed_cli.models import bases, prompts

    plan = make_plan(PlanOptions(learning_rate=RATE), ("A",), None, print_error)
    local = bases.find_for_plan(plan.base, None, None, print_error)
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.folder)
    lines = gzip.open(dataset, "rt", encoding="utf-8") if dataset.suffix == ".gz" else dataset.open(encoding="utf-8")
    import numpy as np

    rows = [json.loads(line) for line in lines]
    order = np.random.default_rng(0).permutation(len(rows))
    kept = []
    for i in order:
        row = examples.Example(str(i), rows[i]["question"], rows[i]["answer"], {})
        encoded = prompts.encode(row, plan.prompt, tokenizer, MAX_LENGTH)
        if encoded is not None:
            kept.append((row, encoded))
        if len(kept) == 30 + 600:
            break
    held, pool = kept[:30], kept[30:]
    chosen = np.random.default_rng(seed + 1).permutation(len(pool))[: steps * BATCH]
    return plan, local, tokenizer, held, [pool[i] for i in chosen]


def print_error(message):
    print(message, file=sys.stderr, flush=True)


def peft_model(local):
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.float32)
    return peft.get_peft_model(model, lora_config())


def lora_config():
    import peft

    return peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def start_factors(model, plan):
    """Put the plan's initial adapter on a PEFT model, so that all contenders start alike."""
    import torch

    from fedmed_cli.adapters.adapter import initial_factors

    factors = initial_factors(plan)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            module, _, factor = name.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            parameter.data = torch.from_numpy(factors[module][factor == "lora_B"].copy())


def read_factors(model):
    values = {name: p.detach().float().numpy() for name, p in model.named_parameters() if ".lora_" in name}
    clean = {name.removeprefix("base_model.model.").removesuffix(".default.weight"): v for name, v in values.items()}
    modules = {name.rpartition(".")[0] for name in clean}
    return {module: (clean[module + ".lora_A"], clean[module + ".lora_B"]) for module in modules}


def with_fedmed(data, steps, seed):
    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.models import language_model
    from fedmed_cli.training import loop
    from fedmed_cli.training import options as training_options

    plan, local, _, _, pairs = data
    lm = language_model.load(local, "cpu", print_error)
    options = training_options.TrainingOptions(BATCH)
    start = plan_adapter(plan, initial_factors(plan))
    encoded = [pair[1] for pair in pairs]
    times = [time.perf_counter()]
    counts = []
    order = loop.batches(encoded, BATCH, seed)
    for _ in range(steps):
        counts.append(sum(len(one.ids) for one in next(order)))
    result = loop.train(
        lm, plan, start, encoded, steps, options, seed=seed, progress=lambda step: times.append(time.perf_counter())
    )
    return times, counts, dict(result.adapter.factors)


def with_plain_loop(data, steps, seed):
    import torch

    plan, local, _, _, pairs = data
    model = peft_model(local)
    start_factors(model, plan)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    times, counts = [time.perf_counter()], []
    for step in range(steps):
        batch = [pairs[i][1] for i in order[step * BATCH : (step + 1) * BATCH]]
        length = max(len(one.ids) for one in batch)
        ids, labels, mask = (torch.full((BATCH, length), fill) for fill in (0, -100, 0))
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            labels[row, one.num_prompt : len(one.ids)] = torch.tensor(one.ids[one.num_prompt :])
            mask[row, : len(one.ids)] = 1
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        counts.append(sum(len(one.ids) for one in batch))
    return times, counts, read_factors(model)


def with_trl(data, steps, seed, best):
    import datasets
    import transformers
    import trl

    from fedmed_cli.models import language_model
    from fedmed_cli.models.prompts import prompt_messages

    plan, local, tokenizer, _, pairs = data
    rows = [
        {
            "prompt": prompt_messages(plan.prompt, row.question),
            "completion": [{"role": "assistant", "content": row.answer}],
        }
        for row, _ in pairs
    ]
    times, counts, seen = [], [], {}

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            if not times:
                times.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    options = {}
    if best:
        import torch

        has_bf16 = language_model.has_bfloat16(torch.device("cpu"))
        options = {
            "gradient_checkpointing": False,
            "bf16": has_bf16,
            "train_sampling_strategy": "group_by_length",
            "model_init_kwargs": {"dtype": "bfloat16" if has_bf16 else "float32"},
        }
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            str(local.folder),
            args=trl.SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=steps,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                max_length=MAX_LENGTH,
                seed=seed,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                use_cpu=True,
                **options,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=lora_config(),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        start_factors(trainer.model, plan)
        collate = trainer.data_collator

        def counting(items):
            seen[len(seen)] = sum(len(item["input_ids"]) for item in items)
            return collate(items)

        trainer.data_collator = counting
        trainer.train()
        counts = [seen[i] for i in range(steps)]
        return times, counts, read_factors(trainer.model)


def peak_memory():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(contender, dataset, steps, seed):
    import torch

    from fedmed_cli.adapters.adapter import plan_adapter

    data = prepare(dataset, steps, seed)
    torch.manual_seed(seed)
    imported = peak_memory()
    if contender == "fedmed":
        found = with_fedmed(data, steps, seed)
    elif contender == "plain PEFT loop":
        found = with_plain_loop(data, steps, seed)
    else:
        found = with_trl(data, steps, seed, contender.endswith("best"))
    times, counts, factors = found
    peak = peak_memory()
    seconds = times[-1] - times[UNTIMED]
    from fedmed_cli.evaluation import measuring
    from fedmed_cli.models import language_model

    plan, local, _, held, _ = data
    lm = language_model.load(local, "cpu", print_error)
    losses = measuring.measure(lm, plan_adapter(plan, factors), [pair[1] for pair in held])
    result = {
        "contender": contender,
        "seed": seed,
        "tokens_per_second": sum(counts[UNTIMED:]) / seconds,
        "seconds_a_step": seconds / (steps - UNTIMED),
        "first_steps_seconds": times[UNTIMED] - times[0],
        "peak_bytes_above_imports": peak - imported,
        "held_out_loss": float(losses.nll.sum() / losses.num_tokens.sum()),
    }
    print(json.dumps(result), flush=True)


def measure_peak(dataset, steps=8):
    """The share of the matrix-product peak: the products of a step alone, at their shapes, against whole steps."""
    import torch

    from fedmed_cli.models import language_model

    data = prepare(dataset, steps, 0)
    dtype = torch.bfloat16 if language_model.has_bfloat16(torch.device("cpu")) else torch.float32
    times, counts, _ = with_fedmed(data, steps, 0)
    seconds = times[-1] - times[UNTIMED]
    tokens = sum(counts[UNTIMED:])
    supervised = sum(one.num_supervised for _, one in data[4]) / sum(len(one.ids) for _, one in data[4])
    rows = round(tokens / (steps - UNTIMED))
    plan = data[0]
    flops = {"forward and backward of the linear layers": 0.0}
    for out, into in plan.base.modules.values():
        flops["forward and backward of the linear layers"] += 2 * 2 * out * into * tokens
    hidden, vocabulary = 576, 49152
    flops["output head"] = 2 * 2 * hidden * vocabulary * tokens * supervised
    rates = {}
    for out, into in [*sorted(set(plan.base.modules.values())), (vocabulary, hidden)]:
        a = torch.randn(rows if out != vocabulary else 256, into, dtype=dtype)
        b = torch.randn(out, into, dtype=dtype)
        repeat = max(3, int(2e10 / (2 * a.shape[0] * into * out)))
        torch.mm(a, b.T)
        began = time.perf_counter()
        for _ in range(repeat):
            torch.mm(a, b.T)
        rates[f"{a.shape[0]} x {into} x {out}"] = 2 * a.shape[0] * into * out * repeat / (time.perf_counter() - began)
    total = sum(flops.values())
    print(
        json.dumps(
            {
                "flops_per_second": total / seconds,
                "matrix_product_peak": max(rates.values()),
                "share_of_peak": total / seconds / max(rates.values()),
                "rates": rates,
            },
            indent=2,
        )
    )


def profile(dataset, steps=8):
    """Where the time of fedmed's steps goes: the share of each operation in the processor time of them all."""
    import torch

    data = prepare(dataset, steps, 0)
    with torch.profiler.profile() as profiler:
        with_fedmed(data, steps, 0)
    rows = sorted(profiler.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:16]:
        print(f"{row.self_cpu_time_total / total:6.1%}  {row.count:7,} times  {row.key}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--trl")
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.dataset, arguments.steps, arguments.seeds[0])
        return
    if arguments.peak:
        measure_peak(arguments.dataset)
        return
    if arguments.profile:
        profile(arguments.dataset)
        return
    rows = []
    environment = os.environ | ({"PYTHONPATH": arguments.trl} if arguments.trl else {})
    for seed in arguments.seeds:
        for contender in arguments.only:
            argv = [sys.executable, __file__, "--dataset", str(arguments.dataset), "--steps", str(arguments.steps)]
            argv += ["--seeds", str(seed), "--worker", contender]
            done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print_error(f"{contender}, seed {seed}: failed")
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print_error(json.dumps(rows[-1]))
    summary = {}
    for contender in arguments.only:
        own = [row for row in rows if row["contender"] == contender]
        if own:
            names = ("tokens_per_second", "peak_bytes_above_imports", "held_out_loss", "first_steps_seconds")
            summary[contender] = {
                name: [f(row[name] for row in own) for f in (min, statistics.median, max)] for name in names
            }
    print(json.dumps({"steps": arguments.steps, "summary": summary, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
