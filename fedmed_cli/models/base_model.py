"""The plan's base model as a step takes it: found on this machine, loaded when needed, kept for the next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.events import Say
from fedmed_cli.models.bases import LocalBase, find_for_plan
from fedmed_cli.records.plan import Base

if TYPE_CHECKING:
    from fedmed_cli.models.language_model import LanguageModel


@dataclass
class BaseModel:
    """Where the base model of a plan is, and how it runs. Pass one object to several steps: it loads only once.

    `name` is a folder or a hub id where the model is not where the plan says, `wheel` a file of the embedded default's
    wheel; `device` is auto, cpu, cuda or mps. `say` gets downloads and the device, `detail` versions and folders.
    """

    name: str | None = None
    wheel: Path | None = None
    device: str = "auto"
    load_in_4bit: bool = False
    say: Say = lambda message: None
    detail: Say = lambda message: None
    _found: tuple[Base, LocalBase] | None = field(default=None, init=False, repr=False)
    _loaded: LanguageModel | None = field(default=None, init=False, repr=False)

    def find(self, base: Base) -> LocalBase:
        """The model on disk. InputError or MachineError where it is not to be had, CombineError for another one."""
        if self._found is None or self._found[0] != base:
            self._found, self._loaded = (base, find_for_plan(base, self.name, self.wheel, self.say)), None
        return self._found[1]

    def load(self, base: Base) -> LanguageModel:
        """The model in memory; imports torch."""
        local = self.find(base)
        if self._loaded is None:
            from fedmed_cli.models import language_model

            self._loaded = language_model.load(
                local, self.device, self.say, self.detail, load_in_4bit=self.load_in_4bit
            )
        return self._loaded
