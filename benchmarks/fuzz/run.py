"""A million mutations of every kind of file that fedmed reads, in pieces that can be run one by one.

    python benchmarks/fuzz/run.py --count 200000 --seed 7 >> pieces.jsonl

Stops with a traceback at the first exception that is not a FedmedError, silent acceptance, or file that takes more
calls of functions than its size allows, and prints the target, the seed and the bytes. Else it prints one JSON object
with the counts.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import fuzzing  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after about that long")
    arguments = parser.parse_args()
    result = fuzzing.Result()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        targets = fuzzing.make_targets(Path(name))
        seed = arguments.seed
        while sum(result.tried.values()) < arguments.count and time.monotonic() - started < arguments.seconds:
            for target in targets:
                if time.monotonic() - started < arguments.seconds:
                    fuzzing.run(target, 100, seed, result)
            seed += 1
    by_target = {}
    for (target, _), tried in result.tried.items():
        by_target[target] = by_target.get(target, 0) + tried
    print(
        json.dumps(
            {
                "tried": sum(result.tried.values()),
                "refused": sum(result.refused.values()),
                "seeds": [arguments.seed, seed],
                "most_calls": result.most_calls,
                "seconds": round(time.monotonic() - started, 1),
                "targets": by_target,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
