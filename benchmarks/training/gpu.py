"""What only a GPU shows: training against TRL, a round, resuming, measuring, chat, gradients. Needs no network.

    sh benchmarks/gpu.sh [--trl FOLDER] [--base-wheel FILE]                # every part, on CUDA
    sh benchmarks/gpu.sh --only nf4 resume --steps 50 --seeds 0 1          # two parts
    sh benchmarks/gpu.sh --device cpu --shape tiny --steps 8 --seeds 0     # tries the script itself in minutes

The model has the shape of Mistral-7B-Instruct-v0.2 and random weights, which take the time and memory of the real
ones. It is made once in SCRATCH (14.5 GB) and kept there. The text is the bundled corpus, in tokens of a small BPE
that is made of it. LoRA r = 8, alpha = 16 on q_proj and v_proj, AdamW at 2e-4, batch 2, 100 steps: the defaults.
FOLDER is where `pip install --target FOLDER --no-deps trl==1.16.0` put TRL. Each contender is a process of its own;
they run in turns, once for each seed, and their first two steps are not timed. A part takes at most --part-seconds;
making the model comes before the first one. What each process said is in SCRATCH/gpu.log. Parts:

    gradients  of the first step on this device, against plain PEFT in float32 on the CPU; a tiny model; NF4 too
    nf4        fedmed against TRL, the base in 4 bits
    bf16       the same in bfloat16
    smollm2    the same in bfloat16 on the embedded base, where it is in the cache or FILE is its wheel
    round      `fedmed round` in 4 bits, three sites
    answers    `fedmed compare` and measuring in 4 bits, `fedmed chat`
    resume     `fedmed train-local` in 4 bits: twice undisturbed, once killed and continued
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import BATCH, MAX_LENGTH, RATE, UNTIMED, lora_config, print_error

ROOT = Path(__file__).resolve().parents[2]
NAMES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size"
SHAPES = {"mistral-7b": (4096, 14336, 32, 32, 8, 128, 32000), "tiny": (128, 256, 2, 4, 2, 32, 2000)}
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
EMBEDDED = "smollm2-135m"
MEASURED = {
    "examples_per_second": "examples/s",
    "tokens_per_second": "useful tokens/s",
    "seconds_a_step": "s a step",
    "training_peak_gb": "GB at the peak of training",
    "loading_peak_gb": "of loading",
    "held_out_loss": "held-out loss",
}

# --- jobs: each is a process of its own ----------------------------------------------------------------


def make_model(folder, shape, device):
    """Make a model folder of this shape, and its fingerprint, where there is none yet; says what the machine is."""
    import importlib.metadata

    import torch

    from fedmed_cli.models import bases, language_model

    language_model.choose_device(device)
    if not Path(folder).is_dir():
        half = Path(folder + ".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        write_model(half, shape, device, write_tokenizer(half))
        half.rename(folder)
    bases.describe(folder, None, print_error)
    cuda = torch.cuda.get_device_properties(0) if device == "cuda" else None
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    return {"name": cuda.name if cuda else "CPU", "bytes": cuda.total_memory if cuda else None, "versions": versions}


def write_tokenizer(folder):
    """A byte-level BPE of 2,000 tokens; the number of its end token."""
    import tokenizers
    import transformers

    from fedmed_cli.data import corpus

    bpe = tokenizers.ByteLevelBPETokenizer()
    texts = [row["answer"] for row in corpus.examples()[:2000]]
    bpe.train_from_iterator(texts, vocab_size=2000, special_tokens=["<|start|>", "<|end|>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast.eos_token_id


def write_model(folder, shape, device, eos):
    """Random bfloat16 weights, made on the device and saved a layer at a time."""
    import torch
    import transformers
    from safetensors.torch import save_file

    sizes = dict(zip(NAMES.split(), SHAPES[shape], strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = transformers.MistralConfig(**sizes, max_position_embeddings=32768, rope_parameters=rope, rms_norm_eps=1e-5)
    config.update({"sliding_window": None, "eos_token_id": eos, "pad_token_id": eos, "dtype": "bfloat16"})
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = transformers.MistralForCausalLM(config).state_dict()
    generator = torch.Generator(device).manual_seed(0)
    places = {name: f"model-{name.split('.')[2] if '.layers.' in name else 'rest'}.safetensors" for name in tensors}
    for place in sorted(set(places.values())):
        shard = {}
        for name in (name for name in places if places[name] == place):
            values = torch.ones(tensors[name].shape, dtype=torch.bfloat16, device=device)
            if values.ndim == 2:
                values.normal_(0, config.hidden_size**-0.5, generator=generator)
            shard[name] = values.cpu()
        save_file(shard, folder / place, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(2 * tensor.numel() for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def embedded_base(wheel):
    """Whether the embedded base is there without a network; `wheel` is a file of it or None."""
    from fedmed_cli.models import bases, bundled_base

    cache = bases.cache_folder()
    if not wheel and not list((cache / "models").glob(f"{EMBEDDED}-*")):
        return False
    bundled_base.ensure(cache, wheel and Path(wheel), print_error)
    return True


def prepare(base, num_examples, seed):
    """The plan, the base, and (example, ids) pairs: 30 to measure on, and others, on other conditions, to train on."""
    import numpy as np
    import transformers

    from fedmed_cli.data import corpus, examples
    from fedmed_cli.federation.plan import PlanOptions, make_plan
    from fedmed_cli.models import bases
    from fedmed_cli.models.prompts import encode

    plan = make_plan(PlanOptions(base=base, learning_rate=RATE), ("A",), None, print_error)
    local = bases.find_for_plan(plan.base, base, None, print_error)
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.folder)
    rows = corpus.examples()
    unseen = {row["focus"] for row in rows[:30]}
    pairs = []
    for row in rows[:30] + [row for row in rows[30:] if row["focus"] not in unseen][:600]:
        example = examples.Example(row["id"], row["question"], row["answer"])
        pairs.append((example, encode(example, plan.prompt, tokenizer, MAX_LENGTH)))
    chosen = np.random.default_rng(seed + 1).permutation(600)[:num_examples]
    return plan, local, tokenizer, pairs[:30], [pairs[30 + i] for i in chosen]


def start_factors(model, factors):
    """Put factors on a PEFT model, wherever and in whatever type it has them; its parameters in fedmed's order."""
    import torch

    parameters = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            module, _, factor = name.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            parameter.data.copy_(torch.from_numpy(factors[module][factor == "lora_B"]))
            parameters[f"{module}.{factor}"] = parameter
    return dict(sorted(parameters.items()))


def settle(device):
    """The time, once the device is done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_so_far(device):
    """The peak of memory until now, in bytes; on a GPU it counts from here on again."""
    import torch

    from fedmed_cli.training import loop

    peak = loop.peak_memory(torch.device(device))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return peak


def with_fedmed(data, device, four_bit, steps, seed):
    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.models import language_model
    from fedmed_cli.training import loop
    from fedmed_cli.training import options as training_options

    plan, local, _, _, pairs = data
    lm = language_model.load(local, device, print_error, load_in_4bit=four_bit)
    loading = peak_so_far(device)
    encoded = [pair[1] for pair in pairs]
    order = loop.batches(encoded, BATCH, seed)
    counts = [sum(len(one.ids) for one in next(order)) for _ in range(steps)]
    start = plan_adapter(plan, initial_factors(plan))
    times = [settle(device)]
    options = training_options.TrainingOptions(BATCH)
    trained = loop.train(
        lm, plan, start, encoded, steps, options, seed=seed, progress=lambda step: times.append(settle(device))
    )
    return times, counts, trained.adapter, lm, loading


def with_trl(data, device, four_bit, steps, seed, best):
    import datasets
    import torch
    import transformers
    import trl

    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.models import language_model
    from fedmed_cli.models.prompts import prompt_messages

    plan, local, tokenizer, _, pairs = data
    prompts = [prompt_messages(plan.prompt, row.question) for row, _ in pairs]
    replies = [[{"role": "assistant", "content": row.answer}] for row, _ in pairs]
    times, counts = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            if not times:
                times.append(settle(device))

        def on_step_end(self, *args, **kwargs):
            times.append(settle(device))

    dtype = torch.bfloat16 if language_model.has_bfloat16(torch.device(device)) else torch.float32
    alike = {"per_device_train_batch_size": BATCH, "max_steps": steps, "max_length": MAX_LENGTH, "seed": seed}
    alike |= {"learning_rate": RATE, "lr_scheduler_type": "constant", "use_cpu": device == "cpu"}
    alike |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    if best:  # as in run.py
        alike |= {"gradient_checkpointing": False, "bf16": dtype == torch.bfloat16}
        alike |= {"train_sampling_strategy": "group_by_length"}
        alike |= {"model_init_kwargs": {"dtype": str(dtype).removeprefix("torch.")}}
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            str(local.folder),
            args=trl.SFTConfig(output_dir=folder, **alike),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts, "completion": replies}),
            peft_config=lora_config(),
            processing_class=tokenizer,
            callbacks=[Clock()],
            quantization_config=quantization if four_bit else None,
        )
        parameters = start_factors(trainer.model, initial_factors(plan))
        collate = trainer.data_collator

        def counting(items):
            counts.append(sum(len(item["input_ids"]) for item in items))
            return collate(items)

        trainer.data_collator = counting
        loading = peak_so_far(device)
        trainer.train()
    values = [parameter.detach().float().cpu().numpy() for parameter in parameters.values()]
    modules = [name.rpartition(".")[0] for name in parameters][::2]
    factors = dict(zip(modules, zip(values[::2], values[1::2], strict=True), strict=True))
    base = trainer.model.unload().eval().requires_grad_(False)
    lm = language_model.LanguageModel(base, tokenizer, torch.device(device), dtype, local, quantized=four_bit)
    return times, counts[:steps], plan_adapter(plan, factors), lm, loading


def train(base, device, four_bit, contender, steps, seed):
    """One contender's training: speed, memory, and the loss that fedmed measures of it."""
    import torch

    from fedmed_cli.evaluation import measuring

    data = prepare(base, steps * BATCH, seed)
    torch.manual_seed(seed)
    if contender == "fedmed":
        found = with_fedmed(data, device, four_bit, steps, seed)
    else:
        found = with_trl(data, device, four_bit, steps, seed, contender.endswith("best"))
    times, counts, adapter, lm, loading = found
    peak = peak_so_far(device)
    losses = measuring.measure(lm, adapter, [pair[1] for pair in data[3]])
    seconds = times[-1] - times[UNTIMED]
    return {
        "examples_per_second": BATCH * (steps - UNTIMED) / seconds,
        "tokens_per_second": sum(counts[UNTIMED:]) / seconds,
        "seconds_a_step": seconds / (steps - UNTIMED),
        "first_steps_seconds": times[UNTIMED] - times[0],
        "loading_peak_gb": loading / 1e9,
        "training_peak_gb": peak / 1e9,
        "held_out_loss": float(losses.nll.sum() / losses.num_tokens.sum()),
    }


def measure(base, device, folder):
    """Tokens a second of measuring the adapter in `folder` on 200 examples, after 30 that are not timed."""
    from fedmed_cli.adapters import gate
    from fedmed_cli.evaluation import measuring
    from fedmed_cli.models import language_model

    _, local, _, held, pairs = prepare(base, 200, 0)
    lm = language_model.load(local, device, print_error, load_in_4bit=True)
    adapter = gate.read_from_anyone(Path(folder)).adapter
    measuring.measure(lm, adapter, [pair[1] for pair in held])
    started = settle(device)
    measuring.measure(lm, adapter, [pair[1] for pair in pairs])
    return sum(len(pair[1].ids) for pair in pairs) / (settle(device) - started)


def gradients(base, device):
    """Relative errors of fedmed's first step, B away from 0; in NF4 also when done again, and after measuring."""
    import bitsandbytes
    import numpy as np
    import peft
    import torch
    import transformers

    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.evaluation import measuring
    from fedmed_cli.models import language_model
    from fedmed_cli.training import loop
    from fedmed_cli.training import options as training_options

    plan, local, _, _, pairs = prepare(base, 4, 0)
    batch = [pair[1] for pair in pairs]
    rng = np.random.default_rng(3)
    initial = initial_factors(plan).items()
    moved = {name: (a, rng.normal(0, 0.05, b.shape).astype(np.float32)) for name, (a, b) in initial}
    start = plan_adapter(plan, moved)
    clip = torch.nn.utils.clip_grad_norm_

    def load(dtype, four_bit=False):
        language_model.has_bfloat16 = lambda device: dtype == torch.bfloat16
        return language_model.load(local, device, print_error, load_in_4bit=four_bit)

    def first(lm):
        caught = []

        def catch(parameters, *rest):
            caught.append(torch.cat([parameter.grad.double().cpu().flatten() for parameter in parameters]))
            return clip(parameters, *rest)

        torch.nn.utils.clip_grad_norm_ = catch
        loop.train(lm, plan, start, batch, 1, training_options.TrainingOptions(len(batch)), seed=0)
        return caught[0]

    def expected(weights):
        """The same by plain PEFT, an example at a time; `weights` take the place of the base's."""
        model = transformers.AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.float32)
        model.load_state_dict(weights, strict=False)
        model = peft.get_peft_model(model, lora_config())
        parameters = start_factors(model, moved)
        for one in batch:
            ids = torch.tensor([one.ids])
            labels = ids.clone()
            labels[0, : one.num_prompt] = -100
            share = one.num_supervised / sum(other.num_supervised for other in batch)
            (model(input_ids=ids, labels=labels).loss * share).backward()
        return torch.cat([parameter.grad.double().flatten() for parameter in parameters.values()])

    def error(found, wanted):
        return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))

    plain = expected({})
    result = {name: error(first(load(getattr(torch, name))), plain) for name in ("float32", "bfloat16")}
    lm = load(torch.bfloat16, four_bit=True)
    weights = {
        f"{name}.weight": bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state).float().cpu()
        for name, layer in lm.model.named_modules()
        if isinstance(layer, bitsandbytes.nn.Linear4bit)
    }
    before, again = first(lm), first(lm)
    measuring.measure(lm, start, batch)
    after = first(lm)
    return result | {
        "nf4": error(before, expected(weights)),
        "again": error(again, before),
        "after": error(after, before),
    }


JOBS = {job.__name__: job for job in (make_model, embedded_base, train, measure, gradients)}

# --- parts: what the rows of the table are made of -----------------------------------------------------


class Part:
    """One part as it runs: its rows, when it has to end, and how it starts other processes."""

    def __init__(self, name, arguments, machine=None):
        self.name, self.arguments, self.machine = name, arguments, machine
        self.scratch, self.steps, self.device = arguments.scratch, arguments.steps, arguments.device
        self.base = self.scratch / arguments.shape
        self.ends = time.monotonic() + arguments.part_seconds
        self.rows, self.runs = [], []

    def row(self, what, value, ok=None):
        """A line of the table; with `ok` it is a check."""
        self.rows.append({"part": self.name, "what": what, "value": value, "ok": ok if ok is None else bool(ok)})
        print_error(line(self.rows[-1]))

    def start(self, *argv):
        """A process of this Python, without a network and the user's settings."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDMED_")}
        if "FEDMED_CACHE" in os.environ:
            environment["FEDMED_CACHE"] = os.environ["FEDMED_CACHE"]
        paths = (str(ROOT), str(self.arguments.trl or ""), os.environ.get("PYTHONPATH", ""))
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "FEDMED_CONFIG": f"{self.scratch}/config"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, *map(str, argv)], env=environment, **pipes)

    def run(self, *argv):
        """Its stdout and stderr; RuntimeError where it fails or the part takes too long."""
        process, late = self.start(*argv), ""
        try:
            out, err = process.communicate(timeout=max(1, self.ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            late = f"the part took more than {self.arguments.part_seconds:.0f} seconds"
        with (self.scratch / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, argv))}\n{err}\n")
        if process.returncode:
            raise RuntimeError(late or (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:300])
        return out, err

    def job(self, name, **given):
        return json.loads(self.run(__file__, "--job", json.dumps([name, given], default=str))[0].splitlines()[-1])

    def fedmed(self, command, folder, *argv):
        device = () if command == "split" else ("--device", self.device)
        return self.run("-m", "fedmed_cli", command, "-C", folder, "--base", self.base, *device, *argv)

    def split(self, folder, limit):
        shutil.rmtree(folder, ignore_errors=True)
        self.fedmed("split", folder, "--limit", limit, "--by", "iid", "--max-steps", self.steps)


def contest(part, base, four_bit):
    """fedmed and TRL in turns, once a seed: the median of each number, its least and its most."""
    names = ("fedmed", "TRL best", "TRL defaults")
    if not ((part.arguments.trl and (part.arguments.trl / "trl").is_dir()) or importlib.util.find_spec("trl")):
        part.row("TRL", "MISSING: it can't be imported, so it has no rows; --trl FOLDER names it")
        names = names[:1]
    longest, own = 0.0, {name: {} for name in names}
    for seed, name in ((seed, name) for seed in part.arguments.seeds for name in names):
        began = time.monotonic()
        if began + 1.2 * longest > part.ends:
            part.row(f"{name}, seed {seed}", f"LEFT OUT: {part.arguments.part_seconds:.0f} seconds would not do")
            continue
        given = {"base": base, "device": part.device, "four_bit": four_bit, "steps": part.steps, "seed": seed}
        try:
            own[name][seed] = part.job("train", contender=name, **given)
        except RuntimeError as error:
            part.row(f"{name}, seed {seed}", str(error), False)
            continue
        longest = max(longest, time.monotonic() - began)
        part.runs.append({"part": part.name, "contender": name, "seed": seed, **own[name][seed]})
    for name, runs in own.items():
        if runs:
            for what, unit in MEASURED.items():
                part.row(f"{name}: {unit}", spread([run[what] for run in runs.values()]))
            seconds = 3 * part.steps * statistics.median(run["seconds_a_step"] for run in runs.values())
            part.row(f"{name}: s a round's training: 3 sites x {part.steps} steps x s a step", f"{seconds:.1f}")
    for name in names[1:]:
        pairs = [(run, own[name][seed]) for seed, run in own["fedmed"].items() if seed in own[name]]
        if pairs:
            ratios = [mine["examples_per_second"] / theirs["examples_per_second"] for mine, theirs in pairs]
            part.row(f"fedmed against {name}: examples/s, seed by seed", spread(ratios))
            worse = statistics.median(mine["held_out_loss"] - theirs["held_out_loss"] for mine, theirs in pairs)
            part.row(f"fedmed against {name}: held-out loss is at most 0.02 above", f"{worse:+.4f}", worse <= 0.02)


def nf4(part):
    contest(part, part.base, True)


def bf16(part):
    needed = 1.3 * sum(path.stat().st_size for path in part.base.glob("*.safetensors"))
    if part.machine["bytes"] and part.machine["bytes"] < needed:
        part.row("this shape in bfloat16", f"SKIPPED: it needs {needed / 1e9:.0f} GB of GPU memory")
    else:
        contest(part, part.base, False)


def smollm2(part):
    if part.arguments.shape == "tiny" and not part.arguments.only:
        part.row(EMBEDDED, "SKIPPED with --shape tiny; --only smollm2 runs it")
    elif part.job("embedded_base", wheel=part.arguments.base_wheel):
        contest(part, EMBEDDED, False)
    else:
        part.row(EMBEDDED, "SKIPPED: it is not in the cache, and no --base-wheel FILE was given")


def whole_round(part):
    work = part.scratch / f"round-{part.arguments.shape}"
    part.split(work, 900)
    began = time.monotonic()
    part.fedmed("round", work, "--load-in-4bit", "--rounds", 1, "--max-eval-samples", 16)
    seconds = time.monotonic() - began
    part.row("`fedmed round`, s: loading, 3 sites in turn, measuring, combining", f"{seconds:.1f}")
    for site in "ABC":
        record = json.loads((work / "rounds/001" / site / "contribution.json").read_text())
        run = record["run"]
        value = f"{run['seconds']}; {run['tokens_per_second']}; {run['peak_memory_bytes'] / 1e9:.2f}"
        part.row(f"site {site}: s with measuring; tokens/s of training; GB at the peak, loading too", value)
        before, after = (record[f"validation_{when}"]["mean"] for when in ("before", "after"))
        part.row(f"site {site}: {part.steps} steps lower its loss", f"{before:.4f} to {after:.4f}", after < before)


def answers(part):
    work = part.scratch / f"round-{part.arguments.shape}"
    if not (work / "rounds/001/global").is_dir():
        part.row("round", "none in SCRATCH yet: it is run first")
        whole_round(part)
    shutil.rmtree(work / ".fedmed/measurements", ignore_errors=True)
    began = time.monotonic()
    out, _ = part.fedmed("compare", work, "--load-in-4bit", "--json", "--max-eval-samples", 64, "--no-answers")
    seconds = time.monotonic() - began
    losses = {name: score["overall"]["loss"] for name, score in json.loads(out)["scores"].items()}
    part.row(f"`fedmed compare`, s: loading, 64 examples under each of {len(losses)}", f"{seconds:.1f}")
    shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    part.row("the global adapter is better than the base", shown, losses["global"] < losses["base"])
    speed = part.job("measure", base=part.base, device=part.device, folder=work / "rounds/001/global")
    part.row("measuring in 4 bits: tokens/s", f"{speed:.0f}")
    question = "What are the symptoms of asthma?"
    reply = json.loads(part.fedmed("chat", work, "--json", "--max-new-tokens", 128, question)[0])
    first, count = reply["seconds_to_first_token"], reply["num_tokens"]
    value = f"{count}; {first}; {(count - 1) / max(reply['seconds'] - first, 1e-9):.1f}"
    part.row("`fedmed chat`, which has no 4 bits: tokens; s to the first; tokens/s after it", value, count > 1)


def resume(part):
    """Two undisturbed runs tell whether this device repeats itself; the killed one is held against them."""
    work, steps, records = part.scratch / "resume", max(part.steps, 20), {}
    part.split(work, 300)
    argv = ("--site", "A", "--load-in-4bit", "--max-steps", steps, "--save-steps", steps // 10)
    argv += ("--logging-steps", 1, "--max-eval-samples", 4)
    for name in ("undisturbed", "again", "killed"):
        folder = part.scratch / f"resume-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work, folder)
        if name == "killed":
            options = ("-C", folder, "--base", part.base, "--device", part.device)
            process = part.start("-m", "fedmed_cli", "train-local", "-q", *options, *argv)
            journal, checkpoint = folder / ".fedmed/training/A-001.jsonl", folder / ".fedmed/checkpoints/A.npz"
            while process.poll() is None and time.monotonic() < part.ends:
                if journal.exists() and journal.read_bytes().count(b"\n") >= steps // 2:
                    break
                time.sleep(0.002)
            process.kill()
            process.communicate()
            was_killed = process.returncode == -signal.SIGKILL and checkpoint.exists()
            part.row(f"SIGKILL after half of {steps} steps", f"exit code {process.returncode}", was_killed)
        _, said = part.fedmed("train-local", folder, *argv)
        records[name] = json.loads((folder / "adapters/A/contribution.json").read_text())
    goes_on = [text for text in said.splitlines() if "resuming from the checkpoint" in text]
    part.row("the same command goes on", "".join(goes_on) or "it started from the beginning", goes_on)

    def difference(name):
        pairs = zip(records[name]["losses"], records["undisturbed"]["losses"], strict=True)
        return records[name]["adapter"] == records["undisturbed"]["adapter"], max(abs(a - b) for a, b in pairs)

    (repeats, noise), (same, moved) = difference("again"), difference("killed")
    words = {True: "same bytes", False: "OTHER BYTES"}
    part.row("undisturbed twice: adapter; largest difference of a step's loss", f"{words[repeats]}; {noise:.2g}")
    ok = same if repeats else moved <= 3 * noise + 0.01
    part.row("killed and continued against undisturbed: the same", f"{words[same]}; {moved:.2g}", ok)


def first_step(part):
    tiny = part.scratch / "tiny"
    part.job("make_model", folder=tiny, shape="tiny", device=part.device)
    found = part.job("gradients", base=tiny, device=part.device)
    for name, bound in {"float32": 1e-4, "bfloat16": 5e-2, "nf4": 5e-2}.items():
        ok = found[name] <= bound
        part.row(f"{name}: relative error of the first step, at most {bound}", f"{found[name]:.2g}", ok)
    part.row("nf4: relative difference when done again", f"{found['again']:.2g}")
    part.row(
        "nf4: after measuring, at most 3 times that", f"{found['after']:.2g}", found["after"] <= 3 * found["again"]
    )


PARTS = {"gradients": first_step, "nf4": nf4, "bf16": bf16, "smollm2": smollm2}
PARTS |= {"round": whole_round, "answers": answers, "resume": resume}


def spread(values):
    least, median, most = (f"{f(values):.4g}" for f in (min, statistics.median, max))
    return median if len(values) == 1 else f"{median} [{least}, {most}]"


def line(row):
    mark = {None: "", True: "ok", False: "FAILED"}[row["ok"]]
    return f"{row['part']:<10} {mark:<7} {row['what']:<78} {row['value']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="mistral-7b")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trl", type=Path, metavar="FOLDER")
    parser.add_argument("--base-wheel", type=Path, metavar="FILE", default=os.environ.get("FEDMED_BASE_WHEEL"))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "fedmed-gpu")
    parser.add_argument("--part-seconds", type=float, default=540)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the JSON goes [SCRATCH/gpu.json]")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, given = arguments.job
        print(json.dumps(JOBS[name](**given)), flush=True)
        return
    arguments.scratch = arguments.scratch.resolve()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    path = arguments.json or arguments.scratch / "gpu.json"
    first = Part("model", arguments)
    try:
        machine = first.job("make_model", folder=first.base, shape=arguments.shape, device=arguments.device)
    except RuntimeError as error:
        sys.exit(f"gpu.py: no model can be made here: {error}")
    first.row("runs on", ", ".join([machine["name"], *(f"{name} {is_}" for name, is_ in machine["versions"].items())]))
    rows, runs = first.rows, []
    for name in arguments.only or PARTS:
        part, began = Part(name, arguments, machine), time.monotonic()
        try:
            PARTS[name](part)
        except (RuntimeError, OSError, LookupError, ValueError) as error:  # the other parts still tell something
            part.row("this part", f"{type(error).__name__}: {error}", False)
        part.row("this part took, s", f"{time.monotonic() - began:.0f}")
        rows, runs = rows + part.rows, runs + part.runs
        result = {"machine": machine, "arguments": vars(arguments), "rows": rows, "runs": runs}
        path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    print("\n".join(map(line, rows)))
    failed = [row for row in rows if row["ok"] is False]
    print(f"{len(failed)} of {sum(row['ok'] is not None for row in rows)} checks failed; the same as JSON: {path}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
