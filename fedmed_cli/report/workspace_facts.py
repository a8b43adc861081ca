"""All that a workspace's records say about its federation, read leniently: what is amiss is named and left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX
from fedmed_cli.adapters.folder import AGGREGATE_NAME, ALLOWED_NAMES, CONTRIBUTION_NAME
from fedmed_cli.errors import InputError
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
from fedmed_cli.trust.verify import Checked, Verification
from fedmed_cli.workspace import Workspace

MAX_ANSWERS_BYTES = 1_000_000
_ROUND = re.compile(r"[0-9]{3,6}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NAME_LINE = re.compile(r"\*\*(.{1,80})\*\*")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Filed:
    """A record as it lies in the workspace: its SHA-256, and the bytes of the adapter folder around it."""

    sha256: str
    folder_bytes: int


@dataclass(frozen=True)
class RoundFacts:
    """One archived round. `files` is by site, and "global"; the measures are of the coordinator's report half."""

    number: int
    aggregate: Aggregate | None
    contributions: dict[str, Contribution]
    files: dict[str, Filed]
    measured_before: float | None = None
    measured_after: float | None = None
    measured_examples: int | None = None


@dataclass(frozen=True)
class Checks:
    """What `verify` found when the report was made."""

    checked: tuple[Checked, ...]
    notes: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One question with the generated answer of each adapter."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Facts:
    """What the report is made of. `problems` names each file that could not be read, and why."""

    plan: Plan
    split: SplitRecord | None
    divisions: dict[str, DivisionRecord]
    rounds: tuple[RoundFacts, ...]
    waiting: dict[str, Contribution]
    comparison: Comparison | None
    site_comparisons: dict[str, Comparison]
    matrix: Matrix | None
    pooled: Pooled | None
    scores: dict[str, Scores]
    questions: tuple[Question, ...]
    problems: tuple[str, ...] = ()
    newest: str | None = None
    versions: tuple[str, ...] = ()

    @property
    def last(self) -> RoundFacts | None:
        return self.rounds[-1] if self.rounds else None


@dataclass
class _Reader:
    workspace: Workspace
    problems: list[str] = field(default_factory=list)
    times: set[str] = field(default_factory=set)

    def attempt(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` gives; None, with the reason kept, where the file does not hold what it should."""
        try:
            return read(path)
        except InputError as error:
            self.problems.append(without_root(error.message, self.workspace))
        except OSError as error:
            self.problems.append(f"{self.workspace.relative(path)}: cannot be read ({error.strerror})")
        return None

    def record(self, kind: type[R], path: Path) -> R | None:
        if not path.exists():
            return None
        found: R | None = self.attempt(path, kind.read)
        created = getattr(found, "run", {}).get("created")
        if isinstance(created, str) and _TIME.fullmatch(created):
            self.times.add(created)
        return found


def without_root(text: str, workspace: Workspace) -> str:
    """`text` with paths relative to the workspace: where it lies is nobody's business, and no part of the report."""
    return re.sub(rf"(?<![\w./-]){re.escape(str(workspace.root))}/", "", text)


def checks_of(verification: Verification, workspace: Workspace) -> Checks:
    """The findings of `verify_workspace` as the report shows them."""
    notes = tuple(without_root(note, workspace) for note in verification.notes)
    faults = tuple(without_root(fault.message, workspace) for fault in verification.faults)
    return Checks(tuple(verification.checked), notes, faults)


def gather(workspace: Workspace) -> Facts:
    """Read the plan (InputError where it is missing or unreadable) and every record there is beside it."""
    plan = workspace.read_plan()
    reader = _Reader(workspace)
    measured = _measured(reader)
    numbers = sorted(
        int(folder.name)
        for folder in (workspace.rounds.iterdir() if workspace.rounds.is_dir() else ())
        if _ROUND.fullmatch(folder.name) and folder.is_dir()
    )
    rounds = tuple(_round(reader, number, measured.get(number, {})) for number in numbers)
    waiting = _waiting(reader, {number for number in numbers if workspace.global_adapter(number).is_dir()})
    divisions = {
        path.parent.name: record
        for path in sorted(workspace.data.glob("*/division.json"))
        if (record := reader.record(DivisionRecord, path)) is not None
    }
    return Facts(
        plan=plan,
        split=reader.record(SplitRecord, workspace.data / "split.json"),
        divisions=divisions,
        rounds=rounds,
        waiting=waiting,
        comparison=reader.record(Comparison, workspace.reports / "compare.json"),
        site_comparisons=_site_comparisons(reader),
        scores={
            path.stem: scores
            for path in sorted(workspace.scores.glob("*.json"))
            if (scores := reader.record(Scores, path)) is not None
        },
        matrix=reader.record(Matrix, workspace.reports / "matrix.json"),
        pooled=reader.record(Pooled, workspace.reports / "pooled/pooled.json"),
        questions=_questions(reader, workspace.reports / "answers.md"),
        problems=tuple(reader.problems),
        newest=max(reader.times, default=None),
        versions=_versions(rounds, waiting),
    )


def _round(reader: _Reader, number: int, measured: Mapping[str, Any]) -> RoundFacts:
    home = reader.workspace.round(number)
    contributions, files = {}, {}
    for folder in sorted(home.iterdir()):
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
            files[folder.name] = Filed(sha256_bytes(data), _folder_bytes(folder))
    aggregate = reader.record(Aggregate, home / "global" / AGGREGATE_NAME)
    if aggregate is not None and aggregate.round != number:
        reader.problems.append(f"rounds/{number:03d}: its record is of round {aggregate.round}")
        aggregate = None
    before, after, count = (measured.get(f"coordinator_{key}") for key in ("before", "after", "examples"))
    return RoundFacts(number, aggregate, contributions, files, before, after, count)


def _site_comparisons(reader: _Reader) -> dict[str, Comparison]:
    """What hospitals measured on their own test examples, by the site in the file's name."""
    found = {}
    for path in sorted(reader.workspace.reports.glob("compare-*.json")):
        site = path.stem.removeprefix("compare-")
        record = reader.record(Comparison, path) if SITE_NAME.fullmatch(site) else None
        if record is None or (record.site is not None and record.site != site):
            reader.problems.append(f"{reader.workspace.relative(path)}: holds no comparison of a site of this name")
        else:
            found[site] = record
    return found


def _folder_bytes(folder: Path) -> int:
    """Bytes of the files that may travel in an adapter folder."""
    return sum(path.lstat().st_size for path in folder.iterdir() if path.name in ALLOWED_NAMES)


def _waiting(reader: _Reader, archived: set[int]) -> dict[str, Contribution]:
    """Contributions in the mailbox that no archived round was made of yet, by site."""
    found = {}
    for path in sorted(reader.workspace.adapters.glob(f"*{BUNDLE_SUFFIX}")):
        reader.problems.append(f"{reader.workspace.relative(path)}: is a bundle, and is not opened for a report")
    for path in sorted(reader.workspace.adapters.glob(f"*/{CONTRIBUTION_NAME}")):
        record = reader.record(Contribution, path)
        if record is not None and record.round not in archived:
            found[record.site] = record
    return found


def _measured(reader: _Reader) -> dict[int, dict[str, Any]]:
    """What rounds on one machine measured on the coordinator's report half, by round, from metrics.jsonl."""
    found = reader.attempt(reader.workspace.root / "metrics.jsonl", read_metrics)
    if found is None:
        return {}
    events, torn = found
    if torn:
        reader.problems.append("metrics.jsonl: its torn last line, left by an interrupted command, was left out")
    result: dict[int, dict[str, Any]] = {}
    for event in events:
        number = event.get("round")
        if event["event"] == "round" and isinstance(number, int):
            values = {"coordinator_examples": event.get("num_examples")}
            values |= {key: event.get(key) for key in ("coordinator_before", "coordinator_after")}
            result[number] = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return result


def _questions(reader: _Reader, path: Path) -> tuple[Question, ...]:
    """The questions of `reports/answers.md`: "## question", then "**adapter**" and its answer, as `compare` writes.

    An adapter's name is one that stands under the first question; another line of that form belongs to the answer.
    """
    if not path.exists():
        return ()
    data = reader.attempt(path, lambda path: read_file(path, MAX_ANSWERS_BYTES))
    if data is None:
        return ()
    found: list[tuple[str, dict[str, list[str]]]] = []
    name, names, blank = "", None, True
    for line in data.decode("utf-8", "replace").splitlines():
        heading = _NAME_LINE.fullmatch(line) if blank else None
        if line.startswith("## ") and blank:
            names = list(found[0][1]) if found else None
            found.append((line[3:], {}))
            name = ""
        elif found and heading and (names is None or heading[1] in names) and heading[1] not in found[-1][1]:
            name = heading[1]
            found[-1][1][name] = []
        elif found and name:
            found[-1][1][name].append(line)
        blank = not line.strip()
    return tuple(
        Question(question, {key: "\n".join(lines).strip() for key, lines in answers.items()})
        for question, answers in found
    )


def _versions(rounds: tuple[RoundFacts, ...], waiting: Mapping[str, Contribution]) -> tuple[str, ...]:
    """The libraries that trained, where the records say so, each version once."""
    records = [record for one in rounds for record in one.contributions.values()] + list(waiting.values())
    names = ("torch", "transformers", "peft", "device")
    found = {f"{name} {value}" for record in records for name in names if (value := record.run.get(name))}
    return tuple(sorted(found))
