"""What `fedmed doctor` forecasts for a round against the time that `fedmed train-local` then takes, on the real base.

    python benchmarks/doctor/forecast.py DIR [SETTING ...] [--processor-time]

Three settings of one hospital: steps of the default size on the bundled corpus; a file of answers of very unlike
lengths with larger steps; few steps with much measuring. Both are whole processes, one after the other, and the ratio
is forecast by truth. Run it where nothing else runs, or on one thread with --processor-time, which counts the seconds
that the processes compute and not those that they wait for other work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedmed_cli.data import corpus

FEDMED = [sys.executable, "-m", "fedmed_cli"]
# By name: whether the hospital has a file of its own, and the options of both commands.
SETTINGS = {
    "corpus": (False, ["--max-steps", "40"]),
    "own-file": (True, ["--max-steps", "16", "--gradient-accumulation-steps", "2", "--gradient-checkpointing"]),
    "measuring": (False, ["--max-steps", "12", "--per-device-train-batch-size", "4", "--eval-steps", "6"]),
}
# Found by Python when it starts: all of its clocks then count what the process computes.
COMPUTING = "import time\ntime.perf_counter = time.process_time\n"


def write_file(path: Path) -> None:
    """2,000 examples whose answers are one to eight of the corpus's, one after the other."""
    rng, rows = random.Random(0), corpus.examples()
    with path.open("w", encoding="utf-8") as file:
        for row in rows[:2000]:
            answer = " ".join(other["answer"] for other in rng.choices(rows, k=rng.randint(1, 8)))
            file.write(json.dumps({"question": row["question"], "answer": answer}) + "\n")


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*argv: str, clock: Callable[[], float] = time.perf_counter) -> tuple[float, str]:
    """Seconds of a command by the clock, and what it prints."""
    started = clock()
    done = subprocess.run([*FEDMED, *argv], check=True, stdout=subprocess.PIPE, text=True)
    return clock() - started, done.stdout


def measure(folder: Path, own_file: bool, options: list[str], clock: Callable[[], float]) -> tuple[float, float, float]:
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
    took, text = run("doctor", "--json", *argv, clock=clock)
    forecast = json.loads(text)["forecast"]["seconds"]
    truth, _ = run("train-local", "-q", *argv, clock=clock)
    return forecast, truth, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"{', '.join(SETTINGS)} [all]")
    parser.add_argument("--processor-time", action="store_true")
    arguments = parser.parse_args()
    clock = time.perf_counter
    with tempfile.TemporaryDirectory() as hook:
        if arguments.processor_time:
            clock = children_seconds
            (Path(hook) / "sitecustomize.py").write_text(COMPUTING)
            os.environ["PYTHONPATH"] = os.pathsep.join([hook, os.environ.get("PYTHONPATH", "")])
            os.environ["OMP_NUM_THREADS"] = "1"
        for name in arguments.settings or SETTINGS:
            forecast, truth, took = measure(arguments.folder / "forecast", *SETTINGS[name], clock)
            times = f"forecast {forecast:.1f} s, took {truth:.1f} s, ratio {forecast / truth:.2f}"
            print(f"{name}: {times}; doctor itself took {took:.1f} s", flush=True)


if __name__ == "__main__":
    main()
