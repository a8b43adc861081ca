"""How much of a round of three sites is neither training nor measuring. Prints JSON.

    python benchmarks/training/round.py [--max-steps 20 --max-eval-samples 24 and other options of `fedmed round`]

The corpus, three hospitals, the embedded base, one process. `round_seconds` is the wall time of the round once the base
is loaded; `training_seconds` and `measuring_seconds` are what the training loops and the forward passes of measuring
took inside it.
"""

import json
import sys
import tempfile
import time

import fedmed_cli.federation.site
from fedmed_cli.cli.app import main as fedmed
from fedmed_cli.evaluation import measuring
from fedmed_cli.federation import simulation

spent = {"training_seconds": 0.0, "measuring_seconds": 0.0, "round_seconds": 0.0}


def timed(function, name):
    def run(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return run


def timed_rounds(*args, **kwargs):
    summaries = run_rounds(*args, **kwargs)
    while True:
        started = time.perf_counter()
        summary = next(summaries, None)
        if summary is None:
            return
        spent["round_seconds"] += time.perf_counter() - started
        yield summary


run_rounds = simulation.run_rounds
simulation.run_rounds = timed_rounds
measuring.measure = timed(measuring.measure, "measuring_seconds")
fedmed_cli.federation.site.train = timed(fedmed_cli.federation.site.train, "training_seconds")
options = sys.argv[1:] or ["--max-steps", "20", "--max-eval-samples", "24"]
with tempfile.TemporaryDirectory() as folder:
    assert fedmed(["split", "-q", "-C", folder]) == 0
    assert fedmed(["round", "-q", "-C", folder, *options]) == 0
parts = spent["training_seconds"] + spent["measuring_seconds"]
print(json.dumps({"options": options} | spent | {"round / parts": round(spent["round_seconds"] / parts, 4)}, indent=2))
