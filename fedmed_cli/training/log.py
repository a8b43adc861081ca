"""A training's numbers while it runs: JSON lines in `.fedmed/training/`, and TensorBoard where it is asked for."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator

from fedmed_cli.errors import MachineError
from fedmed_cli.events import Step
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.metrics import metric_line
from fedmed_cli.training.loop import peak_memory
from fedmed_cli.workspace import Workspace


@contextlib.contextmanager
def journal(
    workspace: Workspace,
    lm: LanguageModel,
    site: str,
    round_number: int,
    logging_steps: int,
    report_to: str | None,
) -> Iterator[Callable[[Step], None]]:
    """A function that takes each step; every `logging_steps` it writes their mean loss and the last's numbers.

    They are for watching: outside `.fedmed/` nothing is written before a training is done, and its losses
    stand in the contribution then. A run that resumes writes behind the lines of the one before.
    `report_to` "tensorboard" also writes event files to `.fedmed/tensorboard/`; MachineError where that
    package is missing.
    """
    losses: list[float] = []
    writer = None
    if report_to == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MachineError(
                "--report-to tensorboard needs tensorboard, which is not installed",
                hint="pip install 'fedmed[tensorboard]'",
            ) from None
        writer = SummaryWriter(workspace.private / "tensorboard" / f"round-{round_number:03d}-{site}")

    def note(step: Step) -> None:
        losses.append(step.loss)
        if step.step % logging_steps and step.step != step.max_steps:
            return
        values = {
            "loss": round(statistics.fmean(losses), 6),
            "learning_rate": step.learning_rate,
            "grad_norm": round(step.grad_norm, 6),
            "tokens_per_second": round(step.tokens_per_second, 1),
            "peak_memory_bytes": peak_memory(lm.device),
        }
        losses.clear()
        lines.write(metric_line("step", round=round_number, site=site, step=step.step, **values))
        lines.flush()
        if writer is not None:
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(name, value, step.step)
            writer.flush()

    path = workspace.private / "training" / f"{site}-{round_number:03d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.open("ab")
    try:
        yield note
    finally:
        lines.close()
        if writer is not None:
            writer.close()
