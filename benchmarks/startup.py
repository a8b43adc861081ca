"""How long `fedmed --help` takes against a minimal Typer app with rich help, and `fedmed aggregate` and `fedmed
status` against a Python that reads and hashes the same files: three adapters of Mistral-7B's shape (r = 8 on q_proj
and v_proj).

    python benchmarks/startup.py [help] [aggregate] [status]

All runs are whole processes, interleaved; the figures are medians and their ratio. Every process finds its bytecode
cached, as that of an installed program is, also where the environment keeps Python from writing it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from contributions import write_contribution

from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training

MINIMAL = '''
import typer
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")

@app.command()
def one(name: str = typer.Option("x", help="A name.")) -> None:
    """Say one thing."""

@app.command()
def two(name: str = typer.Option("x", help="A name.")) -> None:
    """Say another thing."""

app()
'''
READ_AND_HASH = """
import hashlib, pathlib, sys
for name in sys.argv[1:]:
    for path in sorted(pathlib.Path(name).iterdir()):
        print(hashlib.sha256(path.read_bytes()).hexdigest())
"""
FEDMED = [sys.executable, "-m", "fedmed_cli"]
MISTRAL = {
    "model.layers.*.self_attn.q_proj": (4096, 4096, 32),
    "model.layers.*.self_attn.v_proj": (1024, 4096, 32),
}


def seconds(command: list[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def compare(
    commands: Mapping[str, list[str]], runs: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in commands}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as bytecode:
        for number in range(runs + 1):
            for name, command in commands.items():
                before()
                took = seconds(command, kept | {"PYTHONPYCACHEPREFIX": bytecode})
                if number:  # the first warms the caches
                    found[name].append(took)
    return found


def show(found: Mapping[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name}: median {medians[name]:.3f} s, {min(values):.3f} to {max(values):.3f} of {len(values)} runs")
    one, two = medians.values()
    print(f"ratio of the medians {one / two:.2f}")


def help_time(folder: Path) -> None:
    minimal = folder / "minimal.py"
    minimal.write_text(MINIMAL)
    fedmed = [*FEDMED, "--help"]
    show(compare({"fedmed --help": fedmed, "minimal Typer app --help": [sys.executable, str(minimal), "--help"]}, 20))


def contributions(folder: Path) -> None:
    """Three contributions of Mistral's shape with random factors, in a workspace."""
    plan = Plan(
        Base("mistralai/Mistral-7B-Instruct-v0.2", "", "0" * 64, 14_483_464_192, MISTRAL),
        Lora(), Prompt(), Training(), Sites(("A", "B", "C"), 3),
    )  # fmt: skip
    (folder / "federation.toml").write_bytes(plan.to_bytes())
    for number, name in enumerate(plan.sites.names):
        write_contribution(plan, name, number, folder / "adapters" / name)


def aggregate_time(folder: Path) -> None:
    contributions(folder)
    folders = [str(folder / "adapters" / name) for name in "ABC"]
    size = sum(path.stat().st_size for name in folders for path in Path(name).iterdir())
    print(f"three adapters of Mistral-7B's shape, {size / 1e6:.1f} MB")
    fedmed = [*FEDMED, "aggregate", "--weights", "tokens", "-q", "-C", str(folder), *folders]
    commands = {"fedmed aggregate": fedmed, "read and hash": [sys.executable, "-c", READ_AND_HASH, *folders]}
    show(compare(commands, 7, lambda: shutil.rmtree(folder / "rounds", ignore_errors=True)))


def status_time(folder: Path) -> None:
    contributions(folder)
    folders = [str(folder / "adapters" / name) for name in "ABC"]
    fedmed = [*FEDMED, "status", "--site", "B", "-C", str(folder)]
    show(compare({"fedmed status": fedmed, "read and hash": [sys.executable, "-c", READ_AND_HASH, *folders]}, 15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="help, aggregate, status [all]")
    for what in parser.parse_args().what or ["help", "aggregate", "status"]:
        with tempfile.TemporaryDirectory() as name:
            {"help": help_time, "aggregate": aggregate_time, "status": status_time}[what](Path(name))


if __name__ == "__main__":
    main()
