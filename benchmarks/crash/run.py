"""The crash trials in full: random kills, a kill and a full disk at every write, two at once.

    python benchmarks/crash/run.py BASE train-local random_kills 50 3

BASE is a folder with a base model, or smollm2-135m. The rest is one job of tests/helpers/crashing.py: a command and a
task with its arguments. It prints one JSON object, or the first trial that left something that does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "train-local": (
        ["--site", "A", "--max-steps", "4", "--save-steps", "1", "--max-eval-samples", "4"],
        ["adapters/A"],
    ),
    "aggregate": (["--weights", "tokens"], ["rounds/"]),
    "round": (
        ["--rounds", "1", "--max-steps", "2", "--save-steps", "1", "--max-eval-samples", "4", "--weights", "tokens"],
        ["rounds/"],
    ),
}


def fedmed(*argv):
    subprocess.run([sys.executable, "-m", "fedmed_cli", *map(str, argv), "-q"], check=True)


def main(base, command, task, *arguments):
    options, makes = COMMANDS[command]
    if command != "aggregate":
        options = [*options, "--base", base]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "work"
        fedmed("split", "-C", root, "--base", base, "--limit", 240, "--by", "iid", "--lora-r", 4, "--max-length", 256)
        if command != "round":
            for site in "ABC":
                fedmed("train-local", "-C", root, "--site", site, "--base", base, "--max-steps", 1)
        job = {
            "template": str(root),
            "scratch": f"{name}/scratch",
            "argv": [command, "-q", *options],
            "makes": makes,
            "tasks": [[task, *(int(text) if text.isdigit() else text for text in arguments)]],
        }
        (Path(name) / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, ROOT / "tests/helpers/crashing.py", f"{name}/job.json"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    print(json.dumps({"command": command, **json.loads(line.removeprefix("RESULT "))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
