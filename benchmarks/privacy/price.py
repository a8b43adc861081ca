"""What differential privacy costs in loss: the same rounds without it and at several epsilons.

    python benchmarks/privacy/price.py $MEDQUAD FOLDER [--epsilons 8 3 1] [--rounds 3] [--steps 20] [--units 64]

Each row is a federation of three hospitals in FOLDER; rows that are there are not trained again. The loss is that of
the global adapter on test examples, with paired intervals. Epsilon is of one training; the table tells what it is over
all rounds.
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


def own_folder(arguments, program):
    """FOLDER/PROGRAM, for these options alone: rows that were made there with others would pass for rows of these."""
    folder = arguments.folder / program
    folder.mkdir(parents=True, exist_ok=True)
    of_a_row = ("folder", "epsilons", "epsilon", "epochs", "times")  # in the names of the rows
    options = {name: str(value) for name, value in vars(arguments).items() if name not in of_a_row}
    path = folder / "options.json"
    if path.exists() and json.loads(path.read_text()) != options:
        sys.exit(f"{path}: was made with other options; take another FOLDER")
    path.write_text(json.dumps(options))
    return folder


def trained(arguments, epsilon):
    """The rounds' summaries, as `fedmed round --json` prints them, and the workspace."""
    name = f"epsilon-{epsilon:g}" if epsilon else "none"
    path, root = arguments.folder / f"{name}.json", arguments.folder / name
    if not path.exists():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(arguments.folder / "split", root)
        argv = ["round", "-C", root, "--json", "--rounds", arguments.rounds, "--max-steps", arguments.steps]
        argv += ["--per-device-train-batch-size", arguments.units]
        if epsilon:
            argv += ["--dp-epsilon", epsilon, "--dp-max-grad-norm", arguments.max_grad_norm]
        path.write_text(fedmed(*argv))
    return json.loads(path.read_text())["rounds"], root


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
    parser.add_argument("--test", type=int, default=200, help="test examples to measure on")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.folder = own_folder(arguments, "price")
    if not (arguments.folder / "split").exists():
        argv = ["split", "-C", arguments.folder / "split", "--dataset", arguments.dataset, "--by", "iid"]
        argv += ["--limit", arguments.limit, "--max-length", arguments.max_length, "--phi", "off"]
        fedmed(*argv, "--learning-rate", arguments.learning_rate)
    plain = trained(arguments, None)[1]
    rows = {f"epsilon {epsilon:g}": trained(arguments, epsilon) for epsilon in arguments.epsilons}
    argv = ["compare", "-C", plain, "--no-answers", "--max-eval-samples", arguments.test, "--json"]
    for name, (_, root) in rows.items():
        argv += ["--adapter", f"{name}={root / 'rounds' / f'{arguments.rounds:03}' / 'global'}"]
    scores = {name: one["overall"] for name, one in json.loads(fedmed(*argv))["scores"].items()}

    def shown(interval):
        return f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"

    print("| a training | of all rounds | noise multiplier | loss | against the base | against no privacy |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| base | | | {scores['base']['loss']:.4f} | | |")
    score = scores["global"]
    print(f"| no privacy | unbounded | | {score['loss']:.4f} | {shown(score['against_base'])} | |")
    for name, (rounds, _) in rows.items():
        promises = [one["privacy"] for one in rounds[-1]["contributions"].values()]
        total = max(one["total_epsilon"] for one in promises)
        noise = max(one["mechanism"]["noise_multiplier"] for one in promises)
        score = scores[name]
        print(
            f"| {name} | {total:.3g} | {noise:.3g} | {score['loss']:.4f} | {shown(score['against_base'])} "
            f"| {shown(score['against_global'])} |"
        )


if __name__ == "__main__":
    main()
