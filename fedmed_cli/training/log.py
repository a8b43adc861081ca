"""A training's numbers while it runs: JSON lines in `.fedmed/training/`, and TensorBoard where it is asked for."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from fedmed_cli.errors import MachineError
from fedmed_cli.events import Step
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.metrics import metric_line
from fedmed_cli.training.loop import peak_memory
from fedmed_cli.workspace import Workspace


@contextlib.contextmanager
def log_steps(
    workspace: Workspace,
    lm: LanguageModel,
    site: str,
    round_number: int,
    logging_steps: int,
    report_to: str | None,
) -> Iterator[Callable[[Step], None]]:
    """A function that takes each step; every `logging_steps` it writes their mean loss and the last's numbers.

    They are for watching: outside `.fedmed/` nothing is written before a training is done, and its losses
    are in the contribution then. A run that resumes writes after the lines of the one before.
    `report_to` "tensorboard" also writes event files to `.fedmed/tensorboard/`; MachineError where that
    package is missing.
    """
    writer = _summary_writer(workspace, site, round_number) if report_to == "tensorboard" else None
    path = workspace.private / "training" / f"{site}-{round_number:03d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    with path.open("ab") as lines, writer or contextlib.nullcontext():

        def log(step: Step) -> None:
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

        yield log


def _summary_writer(workspace: Workspace, site: str, round_number: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MachineError(
            "--report-to tensorboard needs tensorboard, which is not installed",
            hint="install fedmed with its extra tensorboard: pipx install '.[tensorboard]' in the checkout",
        ) from None
    return SummaryWriter(workspace.private / "tensorboard" / f"round-{round_number:03d}-{site}")
