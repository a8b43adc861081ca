"""What a doctor is asked, what its checks share, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fedmed_cli.data.examples import Example
from fedmed_cli.data.row_index import Index
from fedmed_cli.data.split_options import IndexOptions
from fedmed_cli.errors import FedmedError, InputError
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.records.codec import Record
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.options import SiteSettings
from fedmed_cli.workspace import Workspace

Level = Literal["PASS", "WARN", "FAIL"]
Seen = tuple[Level, str, str | None]  # how a check came out, what it saw, and the remedy


@dataclass(frozen=True)
class Request:
    """What is examined: a site (None: the coordinator's machine), as it would train with these options.

    `data` names the hospital's files; without any it is what lies in data/SITE/. All is as `train-local` takes it.
    """

    site: str | None = None
    data: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None
    options: IndexOptions = field(default_factory=IndexOptions)
    settings: SiteSettings = field(default_factory=SiteSettings)
    device: str = "auto"
    load_in_4bit: bool = False
    base: str | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Forecast:
    """How long `train-local` takes here, in seconds: all, to start, for one step, and for all measuring."""

    steps: int
    seconds: float
    seconds_to_start: float
    seconds_per_step: float
    seconds_of_measuring: float
    examples: Literal["the site's own examples", "the bundled corpus"]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Finding:
    """One line: how a check came out, what it saw, and for WARN and FAIL what to do."""

    check: str
    level: Level
    seen: str
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis(Record):
    """All that `fedmed doctor` says. `not_checked` gives the reason by check."""

    FORMAT: ClassVar[str] = "doctor"

    site: str | None
    findings: tuple[Finding, ...]
    not_checked: dict[str, str]
    forecast: Forecast | None
    exit_code: int


@dataclass
class Examined:
    """A workspace on its way through the checks: what one finds, later ones use; what none found stays empty.

    `scratch` is a folder for what checks need meanwhile; it goes when `stack` is closed.
    """

    workspace: Workspace
    request: Request
    stack: ExitStack
    scratch: Path | None = None
    has_torch: bool = False
    device: str | None = None
    plan: Plan | None = None
    site: str | None = None
    local: LocalBase | None = None
    fits: bool = False
    index: Index | None = None
    examples: list[Example] = field(default_factory=list)
    num_train: int = 0
    num_validation: int = 0
    seconds_to_import: float = 0.0
    seconds_to_read: float = 0.0
    forecast: Forecast | None = None

    @property
    def agreed(self) -> Plan:
        """The plan, for checks that need it."""
        assert self.plan is not None
        return self.plan

    @property
    def temporary(self) -> Path:
        """The folder for what is needed meanwhile, for checks that need it."""
        assert self.scratch is not None
        return self.scratch

    @property
    def group_by(self) -> str | None:
        """The column whose groups are kept together."""
        if self.request.data:
            return self.request.options.group_by
        return self.workspace.group_column(self.site)


# Why a check is not made where what it needs of Examined is empty.
REASONS = {
    "scratch": "there is no temporary folder",
    "has_torch": "torch cannot be loaded",
    "device": "there is no device",
    "plan": "there is no valid plan",
    "site": "the plan has no such site",
    "local": "the plan's base is not here",
    "fits": "there is too little memory",
    "index": "there are no examples",
}


@dataclass(frozen=True)
class Check:
    """A check by name, with what it `needs` of Examined; its failure is an error of `kind`.

    `remedy` is that of an error which brings none. Of an error that is not fedmed's own only the type is shown where
    `sees_texts`: its words might quote an example.
    """

    name: str
    look: Callable[[Examined], Seen]
    remedy: str
    needs: tuple[str, ...] = ()
    kind: type[FedmedError] = InputError
    sees_texts: bool = False
    for_site: bool = False
