"""A training's state on disk, so that a run that was killed resumes and ends with the same bytes."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.events import Say
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_file

SECONDS_BETWEEN = 60.0

Arrays = dict[str, np.ndarray]


@dataclass
class State:
    """What a step leaves behind. `arrays` holds factors, optimiser moments and the best factors by name.

    The data order follows from the seed and `step`, and nothing else in a training is random.
    """

    arrays: Arrays
    step: int = 0
    losses: list[float] = field(default_factory=list)
    num_examples: int = 0
    num_supervised: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_since: int = 0


@dataclass
class Checkpoints:
    """Where one training keeps its state; `identity` names all that its result depends on."""

    workspace: Workspace
    path: Path
    identity: Mapping[str, Any]
    say: Say
    save_steps: int | None = None
    _saved: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether to save after `step`: every `save_steps`, or where none are given after a minute."""
        if self.save_steps is not None:
            return step % self.save_steps == 0
        return time.monotonic() - self._saved >= SECONDS_BETWEEN

    def save(self, state: State) -> None:
        """Write the state atomically and durably."""
        values = {name: value for name, value in vars(state).items() if name not in ("arrays", "losses")}
        head = json.dumps({"identity": sha256_json(dict(self.identity)), "parts": self._parts(), "state": values})
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            head=np.frombuffer(head.encode(), dtype=np.uint8),
            losses=np.array(state.losses, dtype=np.float64),
            **{f"array/{name}": array for name, array in state.arrays.items()},
        )
        write_file(self.path, buffer.getbuffer())
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """The saved state of this very training, if any. Another one's is moved aside, with a message."""
        if not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                if head["identity"] == sha256_json(dict(self.identity)):
                    names = [name for name in file.files if name.startswith("array/")]
                    arrays = {name.removeprefix("array/"): file[name] for name in names}
                    return State(arrays, losses=file["losses"].tolist(), **head["state"])
            old = head["parts"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            reason = "it cannot be read"
        else:
            parts = self._parts()
            reason = f"another {', '.join(sorted(name for name in parts if parts[name] != old.get(name))) or 'run'}"
        aside = self.workspace.set_aside(self.path)
        self.say(
            f"the checkpoint of an earlier run does not fit ({reason}); it is kept in {aside}, training starts over"
        )
        return None

    def is_complete(self, max_steps: int) -> bool:
        """Whether this very training has taken all its steps already."""
        state = self.load()
        return state is not None and state.step >= max_steps

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _parts(self) -> dict[str, str]:
        return {name: sha256_json(value)[:12] for name, value in self.identity.items()}
