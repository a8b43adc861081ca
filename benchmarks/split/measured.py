"""Run a command and measure it from outside: seconds, CPU seconds, peak memory."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# Neither near-duplicates nor identifiers are searched for, and no held-out sets are made.
BARE = ["--near-duplicates", "off", "--phi", "off"]
BARE += ["--validation-share", "0", "--test-share", "0", "--coordinator-share", "0"]


def run(argv: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(argv)} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }


def split(data: Path, work: Path, *options: str) -> dict[str, float]:
    """`fedmed split` of a file into three sites by Dirichlet over its source; `work` is removed before and after."""
    shutil.rmtree(work, ignore_errors=True)
    argv = [sys.executable, "-m", "fedmed_cli", "split", "-q", "-C", str(work), "--dataset", str(data)]
    found = run([*argv, "--by", "dirichlet", "--label", "source", *options])
    shutil.rmtree(work)
    return found


def make_rows(medquad: str, count: int, path: Path) -> Path:
    if not path.exists():
        run([sys.executable, str(HERE / "make_rows.py"), medquad, str(count), str(path)])
    return path
