"""A site's canaries: examples of nobody, half of them trained on by coin flips that only the site knows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_cli.data.examples import Example
from fedmed_cli.errors import InputError
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import private_files, write_file

MAX_BYTES = 100_000_000


@dataclass(frozen=True)
class Canaries:
    """The examples, and for each whether it is trained on."""

    examples: tuple[Example, ...]
    included: tuple[bool, ...]

    @property
    def trained_on(self) -> list[Example]:
        return [example for example, included in zip(self.examples, self.included, strict=True) if included]


def read_canaries(workspace: Workspace, site: str) -> Canaries | None:
    """The canaries of a site, None where it has none. They stay the same over rounds."""
    path = _path(workspace, site)
    if not path.exists():
        return None
    examples, included = [], []
    for number, line in enumerate(read_file(path, MAX_BYTES).splitlines(), 1):
        value = parse_json(line, f"{path}:{number}")
        try:
            examples.append(Example(f"canary-{number}", str(value["question"]), str(value["answer"])))
            included.append(bool(value["included"]))
        except (KeyError, TypeError):
            raise InputError(f"{path}:{number}: is not a canary") from None
    return Canaries(tuple(examples), tuple(included))


def write_canaries(workspace: Workspace, site: str, texts: Sequence[tuple[str, str]]) -> None:
    """Flip a coin of the operating system's for each text, and keep both where no other user can read them."""
    coins = [byte & 1 for byte in os.urandom(len(texts))]
    rows = [
        {"question": question, "answer": answer, "included": bool(coin)}
        for (question, answer), coin in zip(texts, coins, strict=True)
    ]
    with private_files():
        write_file(_path(workspace, site), "".join(json.dumps(row) + "\n" for row in rows).encode())


def _path(workspace: Workspace, site: str) -> Path:
    return workspace.data / f"canaries-{site}.jsonl"
