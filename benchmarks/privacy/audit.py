"""What an audit finds after trainings of several lengths, without differential privacy and with it.

    python benchmarks/privacy/audit.py $MEDQUAD FOLDER [--epochs 1 3 10] [--epsilon 8] [--limit 400] [--canaries 100]

Each row is one training of hospital A on the same examples, in a workspace of its own in FOLDER; rows that are there
are not trained again. About half of the canaries are trained on, once an epoch; in the last two rows there are 20 of
them, 100 times each.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from price import fedmed, own_folder


def audited(arguments, name, options):
    """The audit's record after a training with `options`."""
    path = arguments.folder / f"{name}.json"
    if not path.exists():
        root = arguments.folder / name
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(arguments.folder / "split", root)
        ledger = ("--privacy-ledger", root / "privacy.jsonl")
        fedmed("train-local", "-C", root, "--site", "A", "--max-eval-samples", 10, *ledger, *options)
        path.write_text(fedmed("audit", "-C", root, "--site", "A", "--json"))
    return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 3, 10])
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--canaries", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    arguments.folder = own_folder(arguments, "audit")
    if not (arguments.folder / "split").exists():
        argv = ["split", "-C", arguments.folder / "split", "--dataset", arguments.dataset, "--by", "iid"]
        argv += ["--hospitals", 1, "--validation-share", 0.3, "--coordinator-share", 0.1, "--test-share", 0.1]
        argv += ["--limit", arguments.limit, "--max-length", arguments.max_length, "--phi", "off"]
        fedmed(*argv, "--learning-rate", arguments.learning_rate)
    once = ["--canaries", arguments.canaries]
    often = ["--canaries", 20, "--canary-repeats", 100, "--num-train-epochs", 1]
    private = ["--dp-epsilon", arguments.epsilon, "--per-device-train-batch-size", arguments.units]
    longest = max(arguments.epochs)
    rows = {f"epochs-{epochs}": [*once, "--num-train-epochs", epochs] for epochs in arguments.epochs}
    rows[f"epochs-{longest}-epsilon-{arguments.epsilon:g}"] = [*once, "--num-train-epochs", longest, *private]
    rows["repeats-100"] = often
    rows[f"repeats-100-epsilon-{arguments.epsilon:g}"] = [*often, *private]
    print("| training | AUC | true positives at 1 % false | epsilon, at least | promised | canaries found | exposure |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, options in rows.items():
        found = audited(arguments, name, options)
        auc, tpr = (found["membership"][key] for key in ("auc", "tpr"))
        canaries = found["canaries"]
        promised = "nothing" if found["epsilon"] is None else f"{found['epsilon']:.3g}"
        print(
            f"| {name} | {auc['mean']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] "
            f"| {tpr['mean']:.1%} [{tpr['low']:.1%}, {tpr['high']:.1%}] | {canaries['epsilon_low']:.2f} | {promised} "
            f"| {canaries['found']} of {canaries['num_included']} | {canaries['exposure']:.2f} bits |",
            flush=True,
        )


if __name__ == "__main__":
    main()
