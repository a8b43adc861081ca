"""Tests and training speed under each class of CPU that this one can play, in one table.

    sh benchmarks/cpus.sh --dataset $MEDQUAD --trl FOLDER [--steps 24] [--seeds 0 1 2] [--tests numeric|all|none]

oneDNN's, ATen's and MKL's own switches make a CPU compute as one of a lower class; its caches, memory and clock stay,
so ratios count, not tokens a second. "ATen default" is torch without vector instructions of its own: only tests run
there. FOLDER is where `pip install --target FOLDER --no-deps trl==1.16.0` put TRL. What tests and trainings said goes
to cpus.log.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from fedmed_cli.models.cpu import CLASSES, cpu_class

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = {
    "AMX": {},
    "AVX512-BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
}
NUMERIC = "adapters aggregation chat evaluation federation models training"


def run(command, switches, log):
    """The output of a command under these switches, and whether it succeeded."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | switches, stdout=subprocess.PIPE, stderr=log, text=True)
    log.write(done.stdout)
    log.flush()
    return done.stdout, done.returncode == 0


def tested(arguments, switches, log):
    if arguments.tests == "none":
        return "not run"
    paths = [] if arguments.tests == "all" else [f"tests/{name}" for name in NUMERIC.split()]
    output, _ = run([sys.executable, "-m", "pytest", "-q", *paths], switches, log)
    return output.strip().splitlines()[-1]


def trained(arguments, switches, log):
    command = [
        sys.executable,
        "benchmarks/training/run.py",
        "--dataset",
        str(arguments.dataset),
        "--trl",
        arguments.trl,
    ]
    command += ["--only", "fedmed", "TRL best", "--steps", str(arguments.steps)]
    output, is_done = run([*command, "--seeds", *map(str, arguments.seeds)], switches, log)
    if not is_done:
        return ["failed"] * 4
    rows = json.loads(output)["rows"]
    ours, theirs = ({row["seed"]: row for row in rows if row["contender"] == name} for name in ("fedmed", "TRL best"))
    if ours.keys() != set(arguments.seeds) or theirs.keys() != ours.keys():  # a contender failed, as the log says
        return ["failed"] * 4
    ours, theirs = ([found[seed] for seed in arguments.seeds] for found in (ours, theirs))
    ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs, strict=True)]
    apart = [a["held_out_loss"] - b["held_out_loss"] for a, b in zip(ours, theirs, strict=True)]
    return [
        f"{statistics.median(row['tokens_per_second'] for row in ours):.0f}",
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
        f"{max(row['peak_bytes_above_imports'] for row in ours) / 1e9:.2f}",
        ", ".join(f"{difference:+.4f}" for difference in apart),
    ]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--trl", required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tests", choices=("numeric", "all", "none"), default="numeric")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--classes", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    arguments = parser.parse_args()
    own = cpu_class()
    playable = [*list(CLASSES)[list(CLASSES).index(own) :], "ATen default"] if own in CLASSES else []
    print(f"this CPU is of class {own}\n")
    print(
        "| class | tests | useful tokens/s | times TRL's best, by seed | GB above the imports | loss - TRL's, by seed |"
    )
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with Path("cpus.log").open("w", encoding="utf-8") as log:
        for name in arguments.classes:
            if name not in playable:
                print(f"| {name} | not on this CPU | | | | |", flush=True)
                continue
            switches = {} if name == own else SWITCHES[name]
            cells = [tested(arguments, switches, log)]
            is_trained = not arguments.no_training and name != "ATen default"
            cells += trained(arguments, switches, log) if is_trained else [""] * 4
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
