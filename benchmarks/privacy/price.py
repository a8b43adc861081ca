"""What differential privacy costs in loss: the same rounds without it and at several epsilons.

    python benchmarks/privacy/price.py $MEDQUAD FOLDER [--epsilons 8 3 1] [--rounds 3] [--steps 20] [--units 64]

Each row is a federation of three hospitals in FOLDER; rows that are there are not trained again. The loss is that of
the global adapter on the coordinator's examples that chose nothing. Epsilon is of one training; the table tells what
it is over all rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path


def fedmed(*argv):
    command = [sys.executable, "-m", "fedmed_cli", *map(str, argv)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def trained(arguments, epsilon):
    """The rounds' summaries, as `fedmed round --json` prints them."""
    name = f"epsilon-{epsilon:g}" if epsilon else "none"
    path = arguments.folder / f"{name}.json"
    if not path.exists():
        root = arguments.folder / name
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(arguments.folder / "split", root)
        argv = ["round", "-C", root, "--json", "--rounds", arguments.rounds, "--max-steps", arguments.steps]
        argv += ["--per-device-train-batch-size", arguments.units]
        if epsilon:
            argv += ["--dp-epsilon", epsilon, "--dp-max-grad-norm", arguments.max_grad_norm]
        path.write_text(fedmed(*argv))
    return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8.0, 3.0, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not (arguments.folder / "split").exists():
        argv = ["split", "-C", arguments.folder / "split", "--dataset", arguments.dataset, "--by", "iid"]
        argv += ["--limit", arguments.limit, "--max-length", arguments.max_length, "--phi", "off"]
        fedmed(*argv, "--learning-rate", arguments.learning_rate)
    print("| epsilon of a training | of all rounds | noise multiplier | loss before | after | change, 95 % interval |")
    print("| --- | --- | --- | --- | --- | --- |")
    for epsilon in (None, *arguments.epsilons):
        rounds = trained(arguments, epsilon)["rounds"]
        first, last = rounds[0]["coordinator"], rounds[-1]["coordinator"]
        promises = [one["privacy"] for one in rounds[-1]["contributions"].values() if "privacy" in one]
        total = f"{max(one['total_epsilon'] for one in promises):.3g}" if promises else "unbounded"
        noise = f"{max(one['mechanism']['noise_multiplier'] for one in promises):.3g}" if promises else "0"
        change = last["change"]
        print(
            f"| {epsilon or 'none'} | {total} | {noise} | {first['before']['mean']:.4f} | {last['after']['mean']:.4f} "
            f"| {change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
