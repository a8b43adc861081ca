"""Write the golden files of this release's formats: python tests/make_golden.py v1

Run once a release; the files are never changed afterwards.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from conftest import make_tiny_llama

from fedmed_cli.cli.app import main


def run(*argv: object) -> None:
    assert main([str(part) for part in argv]) == 0


def make(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        base, work = make_tiny_llama(Path(name) / "tiny"), Path(name) / "work"
        run("split", "-q", "-C", work, "--base", base, "--limit", 160, "--by", "iid", "--lora-r", 2, "--max-steps", 1)
        run("round", "-q", "-C", work, "--base", base, "--max-eval-samples", 4)
        for site in "ABC":
            run("train-local", "-q", "-C", work, "--site", site, "--base", base, "--max-eval-samples", 4)
        run("compare", "-q", "-C", work, "--base", base, "--max-eval-samples", 4, "--no-answers")
        run("compare", "score", "-q", "-C", work, "--base", base, "--max-eval-samples", 4, "--site", "A")
        own = Path(name) / "own"
        own.mkdir()
        shutil.copy(work / "federation.toml", own)
        data = work / "data/test.jsonl"
        run("train-local", "-q", "-C", own, "--site", "B", "--data", data, "--base", base, "--max-eval-samples", 4)
        for path in ("federation.toml", "metrics.jsonl", "data/split.json", "adapters", "rounds", "reports", "scores"):
            copy = shutil.copytree if (work / path).is_dir() else shutil.copy
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            copy(work / path, target / path)
        shutil.copy(own / "data/B/division.json", target / "data/division.json")


if __name__ == "__main__":
    make(Path(__file__).parent / "golden" / sys.argv[1])
