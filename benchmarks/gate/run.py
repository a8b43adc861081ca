"""Time and memory of refusing each case of the hostile corpus, on adapters of 1.8 MB.

    python benchmarks/gate/run.py [OUT.json]

Each case runs in a child forked after the imports: what is measured is the whole command that refuses, from
main(argv) to its exit code, in wall and in processor time (the best of three), and how far the child's peak memory
rises above what it held at the fork. On a machine that does other work only the processor time means something.
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

from helpers import bad_files, factories  # noqa: E402

from fedmed_cli.cli.app import main  # noqa: E402
from fedmed_cli.workspace import Workspace  # noqa: E402


def measured(argv):
    """(exit code, seconds, processor seconds, bytes) of a command in a forked child."""
    read, write = os.pipe()
    if os.fork() == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, used = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(argv)
        seconds, busy = time.perf_counter() - start, time.process_time() - used
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os.write(write, json.dumps([code, seconds, busy, growth]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        result = json.loads(file.read())
    os.wait()
    return result


def run(folder):
    os.environ["FEDMED_CONFIG"] = str(folder / "config")
    (folder / "config").mkdir()
    factories.write_key(folder / "config/id_ed25519", factories.SIGNERS["coordinator"])
    plan = factories.make_plan(hidden=16_000)
    good = factories.make_workspace(folder / "good", plan)
    size = (good.contribution("B") / bad_files.WEIGHTS).stat().st_size
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for spoil in (False, True):  # load what commands load when they are used
            root = shutil.copytree(good.root, folder / f"warm{spoil}")
            if spoil:
                (root / "adapters/B" / bad_files.CONFIG).unlink()
            main(["aggregate", "-C", str(root)])
            main(["verify", "-C", str(root)])
    results = {}
    for case in bad_files.CASES:
        best = None
        for _ in range(3):
            root = Path(shutil.copytree(good.root, folder / "work/place"))
            place = bad_files.Place(Workspace(root), plan)
            case.change(place)
            found = measured(case.argv(place))
            shutil.rmtree(folder / "work")
            best = [found[0], *map(min, best[1:3], found[1:3]), max(best[3], found[3])] if best else found
        assert best[0] not in (0, 1), (case.name, best)
        results[case.name] = best
        code, seconds, busy, growth = best
        times = f"{1000 * seconds:7.1f} ms {1000 * busy:7.1f} ms busy"
        print(f"{case.name:45} code {code} {times} {growth / 1e6:6.1f} MB", flush=True)
    return size, results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        size, results = run(Path(name))
    print(f"{len(results)} cases on weights of {size:,} bytes")
    for what, column, scale in (("wall ms", 1, 1000), ("processor ms", 2, 1000), ("MB", 3, 1e-6)):
        most = max(results, key=lambda case: results[case][column])
        print(f"most {what}: {scale * results[most][column]:.1f} ({most})")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"bytes": size, "cases": results}, indent=1))
