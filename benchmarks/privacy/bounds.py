"""Whether an audit ever proves more than was promised: 20 trainings of a tiny model, five at each of four epsilons.

    python benchmarks/privacy/bounds.py FOLDER [--epsilons 0.25 0.5 1 2] [--times 5] [--canaries 60]

Before them the same training without noise, to show that the audit finds what is there. A lower bound above the promise
ends the program with an error. Trainings that are in FOLDER are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from audit import audited
from price import fedmed, own_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from conftest import make_tiny_llama


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--canaries", type=int, default=60)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--units", type=int, default=32)
    arguments = parser.parse_args()
    arguments.folder = own_folder(arguments, "bounds")
    base, split = arguments.folder / "tiny", arguments.folder / "split"
    os.environ["FEDMED_BASE"] = str(base)
    if not split.exists():
        make_tiny_llama(base)
        argv = ["split", "-C", split, "--by", "iid", "--limit", 90, "--max-length", 256]
        argv += ["--learning-rate", 2e-2, "--lora-r", 16, "--phi", "off"]
        fedmed(*argv, "--lora-target-modules", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    options = ["--canaries", arguments.canaries, "--max-steps", arguments.steps]
    options += ["--per-device-train-batch-size", arguments.units]
    print("| promised | proved | right guesses | canaries found |\n| --- | --- | --- | --- |")
    broken = 0
    for epsilon in [None, *arguments.epsilons]:
        private = [] if epsilon is None else ["--dp-epsilon", epsilon]
        for time in range(1 if epsilon is None else arguments.times):
            name = "none" if epsilon is None else f"epsilon-{epsilon:g}-{time}"
            found = audited(arguments, name, [*options, *private])
            canaries, promised = found["canaries"], found["epsilon"]
            broken += promised is not None and canaries["epsilon_low"] > promised
            print(
                f"| {'nothing' if promised is None else f'{promised:.3g}'} | {canaries['epsilon_low']:.2f} "
                f"| {canaries['num_correct']} of {canaries['num_guesses']} "
                f"| {canaries['found']} of {canaries['num_included']} |",
                flush=True,
            )
    sys.exit(f"{broken} trainings broke their promise" if broken else 0)


if __name__ == "__main__":
    main()
