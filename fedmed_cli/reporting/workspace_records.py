"""All that a workspace's records say about its federation, read leniently: what is amiss is named and left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX
from fedmed_cli.adapters.folder import AGGREGATE_NAME, ALLOWED_NAMES, CONTRIBUTION_NAME
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.errors import InputError, TrustError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.checks import SITE_NAME
from fedmed_cli.records.codec import Record, read_file
from fedmed_cli.records.comparison import Comparison, Matrix, Pooled
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.metrics import read_metrics
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.records.split import DivisionRecord, SplitRecord
from fedmed_cli.trust.keys import read_site_record
from fedmed_cli.workspace import Workspace

MAX_ANSWERS_BYTES = 1_000_000
_ROUND = re.compile(r"[0-9]{3,6}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NAME_LINE = re.compile(r"\*\*(.{1,80})\*\*")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class RecordFile:
    """A record's file in the workspace: its SHA-256, and the bytes of the adapter folder around it."""

    sha256: str
    folder_bytes: int


@dataclass(frozen=True)
class RoundRecords:
    """One round. `files` is by site, and "global"; the measures are of the coordinator's report half."""

    number: int
    aggregate: Aggregate | None
    contributions: dict[str, Contribution]
    files: dict[str, RecordFile]
    measured_before: float | None = None
    measured_after: float | None = None
    measured_examples: int | None = None


@dataclass(frozen=True)
class WorkspaceRecords:
    """What the report is made of. `problems` names each file that could not be read or trusted, and why.

    `notes` names what hospitals sent without a signature that the plan knows, `untrusted` are faults of signatures.

    `answers` are the questions of `reports/answers.md`, each with the answer of each adapter.
    """

    workspace: Workspace
    plan: Plan
    split: SplitRecord | None
    divisions: dict[str, DivisionRecord]
    rounds: tuple[RoundRecords, ...]
    waiting: dict[str, Contribution]
    comparison: Comparison | None
    site_comparisons: dict[str, Comparison]
    matrix: Matrix | None
    pooled: dict[str, Pooled]
    scores: dict[str, Scores]
    answers: tuple[tuple[str, dict[str, str]], ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    untrusted: tuple[TrustError, ...] = ()
    newest: str | None = None

    @property
    def rounds_and_waiting(self) -> list[RoundRecords]:
        """The archived rounds, and what waits in the mailbox as the rounds that it is for."""
        numbers = sorted({record.round for record in self.waiting.values()})
        by_number = {n: {site: c for site, c in self.waiting.items() if c.round == n} for n in numbers}
        return [*self.rounds, *(RoundRecords(n, None, records, {}) for n, records in by_number.items())]

    @property
    def versions(self) -> list[str]:
        """The libraries and devices that trained, where the records say so, each once."""
        records = [record for one in self.rounds_and_waiting for record in one.contributions.values()]
        names = ("torch", "transformers", "peft", "device")
        return sorted({f"{name} {value}" for record in records for name in names if (value := record.run.get(name))})


@dataclass
class _Reader:
    workspace: Workspace
    plan: Plan
    policy: SignaturePolicy
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    untrusted: list[TrustError] = field(default_factory=list)
    times: set[str] = field(default_factory=set)

    def attempt(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` gives; None, with the reason kept, where the file does not hold what it should."""
        try:
            return read(path)
        except (InputError, TrustError) as error:
            self.problems.append(without_root(error.message, self.workspace))
            self.untrusted += [error] if isinstance(error, TrustError) else []
        except OSError as error:
            self.problems.append(f"{self.workspace.relative(path)}: cannot be read ({error.strerror})")
        return None

    def record(self, kind: type[R], path: Path, sent: bool = False) -> R | None:
        """The record in a file, if it can be read; one that a hospital sent must be signed as it should be."""
        if not path.exists():
            return None
        read = partial(self.read_sent, kind) if sent else kind.read
        record: R | None = self.attempt(path, read)
        created = getattr(record, "run", {}).get("created")
        if isinstance(created, str) and _TIME.fullmatch(created):
            self.times.add(created)
        return record

    def read_sent(self, kind: Any, path: Path) -> Any:
        """What a hospital sent as one file; where nothing proves that, it is noted."""

        def note(message: str) -> None:
            self.notes.append(without_root(message, self.workspace))
            self.policy.say(message)

        return read_site_record(kind, path, self.plan, SignaturePolicy(self.policy.required, note))[0]

    def records(self, kind: type[R], folder: Path, pattern: str, sent: bool = False) -> dict[Path, R]:
        """The records of the files of this pattern that can be read, by path."""
        records = {path: self.record(kind, path, sent) for path in sorted(folder.glob(pattern))}
        return {path: record for path, record in records.items() if record is not None}


def without_root(text: str, workspace: Workspace) -> str:
    """`text` with paths relative to the workspace: where it lies is nobody's business, and no part of the report."""
    return re.sub(rf"(?<![\w./-]){re.escape(str(workspace.root))}/", "", text)


def read_records(workspace: Workspace, policy: SignaturePolicy = SignaturePolicy()) -> WorkspaceRecords:
    """Read the plan (InputError where it is missing or unreadable) and every record there is beside it."""
    plan = workspace.read_plan()
    reader = _Reader(workspace, plan, policy)
    measurements = _read_measurements(reader)
    numbers = sorted(
        int(folder.name)
        for folder in (workspace.rounds.iterdir() if workspace.rounds.is_dir() else ())
        if _ROUND.fullmatch(folder.name) and folder.is_dir()
    )
    archived = {number for number in numbers if workspace.global_adapter(number).is_dir()}
    return WorkspaceRecords(
        workspace=workspace,
        plan=plan,
        rounds=tuple(_read_round(reader, number, measurements.get(number, {})) for number in numbers),
        waiting=_read_waiting(reader, archived),
        divisions={
            path.parent.name: one
            for path, one in reader.records(DivisionRecord, workspace.data, "*/division.json").items()
        },
        split=reader.record(SplitRecord, workspace.data / "split.json"),
        comparison=reader.record(Comparison, workspace.reports / "compare.json"),
        site_comparisons=_read_site_comparisons(reader),
        scores={path.stem: one for path, one in reader.records(Scores, workspace.scores, "*.json", sent=True).items()},
        matrix=reader.record(Matrix, workspace.reports / "matrix.json"),
        pooled={
            path.parent.name: one
            for path, one in reader.records(Pooled, workspace.reports, "pooled*/pooled.json").items()
        },
        answers=_read_answers(reader, workspace.reports / "answers.md"),
        problems=tuple(reader.problems),
        notes=tuple(reader.notes),
        untrusted=tuple(reader.untrusted),
        newest=max(reader.times, default=None),
    )


def _read_round(reader: _Reader, number: int, measured: Mapping[str, Any]) -> RoundRecords:
    archive = reader.workspace.round(number)
    contributions, files = {}, {}
    for folder in sorted(archive.iterdir()):
        path = folder / (AGGREGATE_NAME if folder.name == "global" else CONTRIBUTION_NAME)
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if folder.name != "global":
            record = reader.record(Contribution, path)
            if record is None:
                continue
            if record.site != folder.name or record.round != number:
                where = reader.workspace.relative(path)
                reader.problems.append(
                    f"{where}: expected site {folder.name}, round {number}, "
                    f"found site {record.site}, round {record.round}"
                )
                continue
            contributions[folder.name] = record
        if path.is_file() and (data := reader.attempt(path, read_file)) is not None:
            files[folder.name] = RecordFile(sha256_bytes(data), _folder_bytes(folder))
    aggregate = reader.record(Aggregate, archive / "global" / AGGREGATE_NAME)
    if aggregate is not None and aggregate.round != number:
        reader.problems.append(f"rounds/{number:03d}: its record is of round {aggregate.round}")
        aggregate = None
    if aggregate is not None and measured.get("adapter", aggregate.adapter) != aggregate.adapter:
        measured = {}  # of a round of the same number, before the rounds were started over
    before, after, count = (measured.get(f"coordinator_{key}") for key in ("before", "after", "examples"))
    return RoundRecords(number, aggregate, contributions, files, before, after, count)


def _read_site_comparisons(reader: _Reader) -> dict[str, Comparison]:
    """What hospitals measured on their own test examples, by the site in the file's name."""
    comparisons = {}
    for path in sorted(reader.workspace.reports.glob("compare-*.json")):
        site = path.stem.removeprefix("compare-")
        is_site = SITE_NAME.fullmatch(site) is not None
        record = reader.record(Comparison, path, sent=True) if is_site else None
        if record is not None and record.site == site:
            comparisons[site] = record
        elif record is not None or not is_site:
            reader.problems.append(f"{reader.workspace.relative(path)}: holds no comparison of a site of this name")
    return comparisons


def _folder_bytes(folder: Path) -> int:
    """Bytes of the files that may travel in an adapter folder."""
    return sum(path.lstat().st_size for path in folder.iterdir() if path.name in ALLOWED_NAMES)


def _read_waiting(reader: _Reader, archived: set[int]) -> dict[str, Contribution]:
    """Contributions in the mailbox that no archived round was made of yet, by site."""
    adapters = reader.workspace.adapters
    for path in sorted(adapters.glob(f"*{BUNDLE_SUFFIX}")):
        reader.problems.append(f"{reader.workspace.relative(path)}: is a bundle, and is not opened for a report")
    records = reader.records(Contribution, adapters, f"*/{CONTRIBUTION_NAME}", sent=True).values()
    return {record.site: record for record in records if record.round not in archived}


def _read_measurements(reader: _Reader) -> dict[int, dict[str, Any]]:
    """What rounds on one machine measured on the coordinator's report half, by round, from metrics.jsonl."""
    metrics = reader.attempt(reader.workspace.root / "metrics.jsonl", read_metrics)
    if metrics is None:
        return {}
    events, torn = metrics
    if torn:
        reader.problems.append("metrics.jsonl: its torn last line, left by an interrupted command, was left out")
    result: dict[int, dict[str, Any]] = {}
    for event in events:
        number = event.get("round")
        if event["event"] == "round" and isinstance(number, int):
            values = {"coordinator_examples": event.get("num_examples")}
            values |= {key: event.get(key) for key in ("coordinator_before", "coordinator_after")}
            result[number] = {key: value for key, value in values.items() if isinstance(value, int | float)}
            if isinstance(event.get("adapter"), str):
                result[number]["adapter"] = event["adapter"]
    return result


def _read_answers(reader: _Reader, path: Path) -> tuple[tuple[str, dict[str, str]], ...]:
    """Each "## question" of a file, and by adapter what is quoted after its "**adapter**", as `compare` writes them.

    An adapter's name is one that stands under the first question; another line of that form belongs to the answer.
    """
    if not path.exists():
        return ()
    data = reader.attempt(path, lambda path: read_file(path, MAX_ANSWERS_BYTES))
    if data is None:
        return ()
    questions: list[tuple[str, dict[str, list[str]]]] = []
    name, names, blank = "", None, True
    for line in data.decode("utf-8", "replace").splitlines():
        heading = _NAME_LINE.fullmatch(line) if blank else None
        if line.startswith("## ") and blank:
            names = list(questions[0][1]) if questions else None
            questions.append((line[3:], {}))
            name = ""
        elif questions and heading and (names is None or heading[1] in names) and heading[1] not in questions[-1][1]:
            name = heading[1]
            questions[-1][1][name] = []
        elif questions and name:
            questions[-1][1][name].append(line.removeprefix("> "))
        blank = not line.strip()
    return tuple(
        (question, {name: "\n".join(lines).strip() for name, lines in answers.items()})
        for question, answers in questions
    )
