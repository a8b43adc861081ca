"""What `fedmed doctor` forecasts for a round against the time that `fedmed train-local` then takes, on the real base.

    python benchmarks/doctor/forecast.py DIR [--repeats 1]

Three settings of one hospital: the defaults on the bundled corpus; a file of answers of very unlike lengths with larger
steps; few steps with much measuring. Both are whole processes, one after the other, and the ratio is forecast by truth.
Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fedmed_cli.data import corpus

FEDMED = [sys.executable, "-m", "fedmed_cli"]
SETTINGS = {
    "defaults, bundled corpus, 100 steps": (False, []),
    "own file, 30 steps of 4 examples in two passes, checkpointing": (
        True,
        ["--max-steps", "30", "--gradient-accumulation-steps", "2", "--gradient-checkpointing"],
    ),
    "bundled corpus, 16 steps of 4, evaluated every 8": (
        False,
        ["--max-steps", "16", "--per-device-train-batch-size", "4", "--eval-steps", "8"],
    ),
}


def write_file(path: Path) -> None:
    """2,000 examples whose answers are one to eight of the corpus's, one after the other."""
    rng, rows = random.Random(0), corpus.examples()
    with path.open("w", encoding="utf-8") as file:
        for row in rows[:2000]:
            answer = " ".join(other["answer"] for other in rng.choices(rows, k=rng.randint(1, 8)))
            file.write(json.dumps({"question": row["question"], "answer": answer}) + "\n")


def run(*argv: str) -> tuple[float, str]:
    """Seconds of a command, and what it prints."""
    started = time.perf_counter()
    done = subprocess.run([*FEDMED, *argv], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


def measure(folder: Path, own_file: bool, options: list[str]) -> tuple[float, float, float]:
    """The forecast and the truth in seconds, and what the forecast itself took."""
    shutil.rmtree(folder, ignore_errors=True)
    work = str(folder / "work")
    folder.mkdir(parents=True)
    os.environ["FEDMED_CONFIG"] = str(folder / "config")
    data: list[str] = []
    if own_file:
        run("init", "-q", "-C", work, "--names", "A,B,C")
        write_file(folder / "records.jsonl")
        data = ["--data", str(folder / "records.jsonl")]
    else:
        run("split", "-q", "-C", work)
    argv = ["--site", "A", "-C", work, *data, *options]
    took, text = run("doctor", "--json", *argv)
    forecast = json.loads(text)["forecast"]["seconds"]
    truth, _ = run("train-local", "-q", *argv)
    return forecast, truth, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    for name, (own_file, options) in SETTINGS.items():
        for _ in range(arguments.repeats):
            forecast, truth, took = measure(arguments.folder / "forecast", own_file, options)
            ratio = f"ratio {forecast / truth:.2f}"
            print(f"{name}: forecast {forecast:.1f} s, took {truth:.1f} s, {ratio}; doctor itself took {took:.1f} s")


if __name__ == "__main__":
    main()
