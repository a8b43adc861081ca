"""Time and memory of refusing each case of the hostile corpus, on adapters of 1.8 MB.

    python benchmarks/gate/run.py [OUT.json]

Each case runs in a child forked after the imports: what is measured is the whole command that refuses, from
main(argv) to its exit code, and how far the child's peak memory rises above what it held at the fork.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hostile  # noqa: E402
import lab  # noqa: E402

from fedmed_cli.app import main  # noqa: E402
from fedmed_cli.workspace import Workspace  # noqa: E402


def measured(argv):
    """(exit code, seconds, bytes) of a command in a forked child."""
    read, write = os.pipe()
    if os.fork() == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(argv)
        seconds = time.perf_counter() - start
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os.write(write, json.dumps([code, seconds, growth]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        result = json.loads(file.read())
    os.wait()
    return result


def run(folder):
    os.environ["FEDMED_CONFIG"] = str(folder / "config")
    (folder / "config").mkdir()
    lab.write_key(folder / "config/id_ed25519", lab.SIGNERS["coordinator"])
    plan = lab.make_plan(hidden=16_000)
    good = lab.make_workspace(folder / "good", plan)
    size = (good.contribution("B") / hostile.WEIGHTS).stat().st_size
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for spoil in (False, True):  # load what commands load when they are used
            root = shutil.copytree(good.root, folder / f"warm{spoil}")
            if spoil:
                (root / "adapters/B" / hostile.CONFIG).unlink()
            main(["aggregate", "-q", "-C", str(root)])
            main(["verify", "-q", "-C", str(root)])
    results = {}
    for case in hostile.CASES:
        best = None
        for _ in range(3):
            root = Path(shutil.copytree(good.root, folder / "work/place"))
            place = hostile.Place(Workspace(root), plan)
            case.change(place)
            code, seconds, growth = measured(case.argv(place))
            shutil.rmtree(folder / "work")
            best = (code, min(seconds, best[1]), min(growth, best[2])) if best else (code, seconds, growth)
        assert best[0] not in (0, 1), (case.name, best)
        results[case.name] = best
        print(f"{case.name:45} code {best[0]} {1000 * best[1]:7.1f} ms {best[2] / 1e6:6.1f} MB", flush=True)
    return size, results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        size, results = run(Path(name))
    slowest = max(results, key=lambda case: results[case][1])
    largest = max(results, key=lambda case: results[case][2])
    print(f"{len(results)} cases on weights of {size:,} bytes")
    print(f"slowest: {slowest}, {1000 * results[slowest][1]:.1f} ms")
    print(f"largest: {largest}, {results[largest][2] / 1e6:.1f} MB")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"bytes": size, "cases": results}, indent=1))
