"""How aggregation scales, and how it compares with PEFT's own.

    python benchmarks/aggregation/scaling.py sites     30, 100, 300 and 1,000 sites of a small shape, whole commands
    python benchmarks/aggregation/scaling.py ten       ten sites, r = 16, all linear layers of the embedded base
    python benchmarks/aggregation/scaling.py peft      three adapters: fedmed's svd against add_weighted_adapter(svd)

Each figure comes from a process of its own where memory counts. Results are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedmed_cli.adapters.adapter import adapter_files, initial_factors, plan_adapter
from fedmed_cli.aggregation.evidence import PAIRWISE_UP_TO
from fedmed_cli.aggregation.methods import svd
from fedmed_cli.models import bundled_base
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training

sys.path.insert(0, str(Path(__file__).parents[1]))
from contributions import random_adapter, write_contribution  # beside this folder

SMALL = {"model.layers.*.self_attn.q_proj": (256, 256, 8), "model.layers.*.self_attn.v_proj": (64, 256, 8)}
ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


COUNTS = (30, 100, 300, 1000)
REPEATS = 7

# A round of three sites comes first, so that start-up (imports, threads) is not counted to the sites.
MEASURED = """
import resource, sys, time
from fedmed_cli.aggregation import evidence
from fedmed_cli.cli.app import main
evidence.PAIRWISE_UP_TO = int(sys.argv[1])
def aggregate(root):
    started = time.perf_counter()
    assert main(["aggregate", "--weights", "tokens", "-q", "-C", root]) == 0
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, before = aggregate(sys.argv[2])
seconds, after = aggregate(sys.argv[3])
print(seconds, before, after)
"""


def sites(folder: Path) -> None:
    """Time and memory by number of sites: as it is, and with the comparison of all pairs left out.

    A round takes a fixed time (the command, one SVD a module) and a time for each site: the latter is the
    difference to the row before, by the sites that were added.
    """
    for count in (3, *COUNTS):
        _federation(folder, count)
    cases = [(count, pairwise) for count in COUNTS for pairwise in (PAIRWISE_UP_TO, 0)]
    found: dict[tuple[int, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for count, pairwise in REPEATS * cases:  # in turns, so that a slow minute is everybody's
        for used in (3, count):
            shutil.rmtree(folder / str(used) / "rounds", ignore_errors=True)
        command = [sys.executable, "-c", MEASURED, str(pairwise), str(folder / "3"), str(folder / str(count))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, before, after = map(float, done.stdout.split()[-3:])
        found[count, pairwise].append((seconds, (after - before) / 1024))
    last = (0, 0.0)
    for count in COUNTS:
        seconds, linear = (min(run[0] for run in found[count, pairwise]) for pairwise in (PAIRWISE_UP_TO, 0))
        memory = max(run[1] for run in found[count, PAIRWISE_UP_TO])
        row = {"sites": count, "seconds": round(seconds, 3), "megabytes_above_three_sites": round(memory, 1),
               "seconds_without_pairs": round(linear, 3)}  # fmt: skip
        if last[0]:
            row["ms_per_further_site_without_pairs"] = round(1000 * (linear - last[1]) / (count - last[0]), 2)
        print(json.dumps(row), flush=True)
        last = (count, linear)


def _federation(folder: Path, count: int) -> None:
    """A workspace with the contributions of so many sites, of a small shape."""
    root = folder / str(count)
    names = tuple(f"H{i:04d}" for i in range(count))
    base = Base("small", "", "0" * 64, 10_000_000, SMALL)
    plan = Plan(base, Lora(), Prompt(), Training(), Sites(names, count))
    root.mkdir()
    (root / "federation.toml").write_bytes(plan.to_bytes())
    for number, name in enumerate(names):
        write_contribution(plan, name, number, root / "adapters" / name)


def ten(folder: Path) -> None:
    plan = Plan(bundled_base.BASE, Lora(r=16, alpha=32.0, targets=ALL_LINEAR), Prompt(), Training(),
                Sites(tuple("ABCDEFGHIJ"), 10))  # fmt: skip
    parent = plan_adapter(plan, initial_factors(plan))
    members = [random_adapter(plan, seed) for seed in range(10)]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        svd(plan, parent, members, [0.1] * 10)
        times.append(time.perf_counter() - started)
    print(json.dumps({"sites": 10, "r": 16, "modules": len(plan.modules), "seconds": round(min(times), 3)}))


def peft(folder: Path) -> None:
    """Time and error against the exact mean, interleaved in one process."""
    import torch
    import transformers
    from peft import PeftModel

    plan = Plan(bundled_base.BASE, Lora(), Prompt(), Training(), Sites(("A", "B", "C"), 3))
    parent = plan_adapter(plan, initial_factors(plan))
    members = [random_adapter(plan, seed) for seed in range(3)]
    weights = [0.5, 0.3, 0.2]
    config = transformers.LlamaConfig(
        **{k: v for k, v in bundled_base._CONFIG.items() if k not in ("architectures", "dtype")}
    )
    model = transformers.LlamaForCausalLM(config)
    loaded = None
    for name, adapter in zip("ABC", members, strict=True):
        home = folder / name
        home.mkdir()
        for file, data in adapter_files(adapter, "x").items():
            (home / file).write_bytes(data)
        if loaded is None:
            loaded = PeftModel.from_pretrained(model, home, adapter_name=name)
        else:
            loaded.load_adapter(home, adapter_name=name)
    ours, theirs = [], []
    for number in range(4):
        started = time.perf_counter()
        result, _ = svd(plan, parent, members, weights)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        loaded.add_weighted_adapter(list("ABC"), weights, f"mean{number}", combination_type="svd", svd_rank=8)
        theirs.append(time.perf_counter() - started)
    cut, total = np.zeros(2), 0.0
    for module in plan.modules:
        mean = sum(
            w * m.scale(module) * m.factors[module][1].astype(float) @ m.factors[module][0]
            for w, m in zip(weights, members, strict=True)
        )
        a, b = result.factors[module]
        layer = loaded.base_model.model.get_submodule(module)
        other = layer.get_delta_weight("mean0").detach().numpy().astype(float)
        cut += [np.sum((result.scale(module) * b.astype(float) @ a - mean) ** 2), np.sum((other - mean) ** 2)]
        total += np.sum(mean**2)
    errors = np.sqrt(cut / total)
    print(json.dumps({
        "fedmed_seconds": round(statistics.median(ours[1:]), 4),
        "peft_seconds": round(statistics.median(theirs[1:]), 3),
        "ratio": round(statistics.median(theirs[1:]) / statistics.median(ours[1:]), 1),
        "fedmed_error": float(errors[0]), "peft_error": float(errors[1]), "threads": torch.get_num_threads(),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sites", "ten", "peft"])
    with tempfile.TemporaryDirectory() as name:
        {"sites": sites, "ten": ten, "peft": peft}[parser.parse_args().what](Path(name))


if __name__ == "__main__":
    main()
