"""Where things lie in a federation's folder, and its lock."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.errors import BusyError, ConflictError, InputError, TrustError
from fedmed_cli.events import Say
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.metrics import metric_line
from fedmed_cli.records.plan import MAX_PLAN_BYTES, PUBLIC_KEY, Plan
from fedmed_cli.workspace.durable import (
    end_of_last_line,
    make_folders,
    sync_folder,
    write_all,
    write_file,
    write_folder,
)

if TYPE_CHECKING:
    from fedmed_cli.records.split import DivisionRecord, SplitRecord

PLAN_NAME = "federation.toml"
PLAN_SIGNATURE_NAME = f"{PLAN_NAME}.sig"
DIVISION_NAME = "division.json"
_ROUND = re.compile(r"[0-9]{3,6}")
_REPLACEMENT = re.compile(r"\.([^.].*)\.[0-9]+\.new\.tmp")
# What fedmed itself leaves: a file's or folder's name with the process's number, or with tempfile's eight characters.
_LEFT_OVER = re.compile(r"\..+\.([0-9]+(\.new)?|[a-z0-9_]{8})\.tmp")


def utc_now() -> str:
    """The time for a record's `run` object, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Workspace:
    """A federation's folder. Nothing is read or created before a method is called.

    `say` is told of what an interrupted command had left and what was done about it.
    """

    root: Path
    say: Say = field(default=lambda message: None, repr=False, compare=False)

    @property
    def plan_path(self) -> Path:
        return self.root / PLAN_NAME

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def rounds(self) -> Path:
        return self.root / "rounds"

    @property
    def late(self) -> Path:
        """Contributions that came when their round was aggregated: `late/NNN/SITE/`."""
        return self.root / "late"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def scores(self) -> Path:
        """What hospitals measured of each other's contributions, for `--weights crosseval`."""
        return self.root / "scores"

    @property
    def private(self) -> Path:
        """Lock, caches and replaced files: safe to delete when idle."""
        return self.root / ".fedmed"

    def site_data(self, site: str) -> Path:
        return self.data / site

    def division(self, site: str | None = None) -> SplitRecord | DivisionRecord | None:
        """The record of the site's own division, else that of the split; None where there is neither."""
        from fedmed_cli.records.split import DivisionRecord, SplitRecord

        division = self.site_data(site) / DIVISION_NAME if site else None
        if division is not None and division.exists():
            return DivisionRecord.read(division)
        split = self.data / "split.json"
        return SplitRecord.read(split) if split.exists() else None

    def group_column(self, site: str | None = None) -> str | None:
        """The column whose groups were kept together."""
        record = self.division(site)
        return record.group_by if record is not None else None

    def has_patients(self, site: str | None = None) -> bool:
        """Whether the examples may be of patients: all are but those of the bundled corpus."""
        return getattr(self.division(site), "source", None) != "corpus"

    def contribution(self, site: str) -> Path:
        return self.adapters / site

    def personal(self, site: str) -> Path:
        """The site's private adapter, which does not leave the hospital."""
        return self.root / "personal" / site

    def round(self, number: int) -> Path:
        return self.rounds / f"{number:03d}"

    def global_adapter(self, number: int) -> Path:
        return self.round(number) / "global"

    def newest_round(self) -> int:
        """The newest round with a global adapter, 0 where there is none."""
        return max(self.list_rounds(), default=0)

    def list_rounds(self) -> list[int]:
        """The rounds with a global adapter, in order; some between them may not be here."""
        if not self.rounds.is_dir():
            return []
        return sorted(
            int(folder.name)
            for folder in self.rounds.iterdir()
            if _ROUND.fullmatch(folder.name) and (folder / "global").is_dir()
        )

    def read_plan(self, *, remember: bool = True) -> Plan:
        """The plan; TrustError unless it is signed as it asks itself, with the keys that were pinned here before.

        Keys that are new here are remembered, unless the caller may change nothing.
        """
        plan = self.read_sent_plan()
        self._check_pins(plan)
        if remember and plan.sites.keys.keys() - self.known_pins().keys():
            with contextlib.suppress(OSError):  # a workspace on a read-only disk
                self.remember_pins(plan)
        return plan

    def read_sent_plan(self) -> Plan:
        """The plan; TrustError unless it is signed as it asks itself, whatever was pinned here before."""
        if not self.plan_path.exists():
            raise InputError(
                f"{self.root} is not a fedmed workspace: it has no {PLAN_NAME}",
                hint="make one with 'fedmed split' or 'fedmed init', copy the coordinator's federation.toml here, "
                "or name the workspace with --workspace",
            )
        data = read_file(self.plan_path, MAX_PLAN_BYTES)
        plan = Plan.from_bytes(data, str(self.plan_path))
        self._check_plan_signature(data, plan.sites.keys.get(COORDINATOR))
        return plan

    def _check_plan_signature(self, data: bytes, key: str | None) -> None:
        """TrustError unless the plan's bytes are signed with the coordinator's key; without one nothing may be signed.

        No signature is as wrong as another key's, for anyone can take one away.
        """
        path = self.root / PLAN_SIGNATURE_NAME
        signed = os.path.lexists(path)
        if key is None and not signed:
            return
        hint = (
            f"ask the coordinator for {PLAN_NAME} and {PLAN_SIGNATURE_NAME}, and copy both here; "
            "the coordinator reads the plan and signs it with 'fedmed keys sign', "
            "also where 'fedmed keys' was interrupted"
        )
        if key is None:
            raise TrustError(f"{path}: is a signature, but the plan pins no key for the coordinator", hint=hint)
        if not signed:
            raise TrustError(
                f"{self.plan_path}: is not signed, but pins the coordinator's key: {PLAN_SIGNATURE_NAME} is missing",
                hint=hint,
            )
        from fedmed_cli.records.signatures import MAX_SIGNATURE_BYTES, fingerprint, verify

        signer = verify(data, read_file(path, MAX_SIGNATURE_BYTES, links=False), str(path), hint)
        if signer != key:
            raise TrustError(
                f"{self.plan_path}: pins the coordinator's key {fingerprint(key)}, "
                f"found a signature with {fingerprint(signer)}",
                hint=hint,
            )

    def _check_pins(self, plan: Plan) -> None:
        """TrustError where a key that was pinned here before is another one in this plan, or is not there any more.

        The plan alone does not show that somebody took keys out of it.
        """
        known = self.known_pins()
        lost = sorted(name for name, key in known.items() if plan.sites.keys.get(name) != key)
        if lost:
            raise TrustError(
                f"{self.plan_path}: the keys of {', '.join(lost)} are not those that were pinned here before",
                hint="ask whoever sent the plan, by telephone; if it is right, 'fedmed keys accept' takes its keys",
            )

    def known_pins(self) -> dict[str, str]:
        """The keys that were pinned here, by who they belong to; empty where none were."""
        path = self.private / "pinned.json"
        if not path.exists():
            return {}
        value = parse_json(read_file(path), str(path))
        if not isinstance(value, dict) or not all(PUBLIC_KEY.fullmatch(str(key)) for key in value.values()):
            raise InputError(
                f"{path}: is damaged; it remembers the keys that were pinned here",
                hint="move it elsewhere; then 'fedmed keys show' shows the keys of the plan that will be pinned anew",
            )
        return value

    def remember_pins(self, plan: Plan) -> None:
        """Take the plan's keys for those that are pinned here."""
        self.make_private()
        write_file(self.private / "pinned.json", json.dumps(plan.sites.keys, sort_keys=True).encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other fedmed processes from writing here. The lock of a dead process is free.

        BusyError where another process holds it.
        """
        from filelock import FileLock, Timeout

        self.make_private()
        lock, holder = FileLock(self.private / "lock"), self.private / "lock.pid"
        for path in (self.private, Path(lock.lock_file), holder):
            if path.is_symlink():
                raise InputError(f"{path}: is a link, which fedmed never makes", hint="remove it")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"another fedmed (process {self.lock_holder() or 'unknown'}) works in {self.root}",
                hint="wait until it is done",
            ) from None
        try:
            holder.write_text(f"{os.getpid()}\n")
            self._sweep()
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def lock_holder(self) -> int | None:
        """The process that holds the lock, or died while it did; None where nobody wrote it down."""
        try:
            text = read_file(self.private / "lock.pid", 100, links=False).decode("ascii").strip()
        except (InputError, UnicodeDecodeError):
            return None
        return int(text) if text.isdigit() and len(text) < 20 else None

    def make_private(self) -> None:
        """Make `.fedmed/` for this user alone: it holds what is computed from single examples.

        Whoever shares a workspace on purpose may open it to a group; an existing folder keeps its mode.
        """
        make_folders(self.root)
        self.private.mkdir(mode=0o700, exist_ok=True)

    def _sweep(self) -> None:
        """Finish or remove what a process left that died while writing. Links, and names of others, stay.

        A folder that replaces another is complete before the old one moves (see `replace_folder`): where it
        is still waiting and its place is empty, it moves there now.
        """
        for orphan, target in self.list_left_overs():
            if target is not None and not target.exists():
                os.rename(orphan, target)
                sync_folder(target.parent)
                self.say(f"{self.relative(target)}: put in place what an interrupted command had finished writing")
            else:
                shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
                self.say(f"removed {self.relative(orphan)}, left by a command that was interrupted")

    def list_left_overs(self) -> Iterator[tuple[Path, Path | None]]:
        """What a command that writes now, or was interrupted, has not put in place, and its place if it is complete."""
        places = (
            *(self.root, self.data, self.adapters, self.rounds, self.reports, self.scores, self.late, self.private),
            self.root / "personal",
        )
        nested = (folder for place in (self.data, self.rounds, self.late, self.private) for folder in place.glob("*"))
        for folder in (*places, *(folder for folder in nested if not folder.is_symlink())):
            for orphan in sorted(folder.glob(".*.tmp")) if folder.is_dir() else ():
                if not orphan.is_symlink() and _LEFT_OVER.fullmatch(orphan.name):
                    replacement = _REPLACEMENT.fullmatch(orphan.name)
                    yield orphan, folder / replacement.group(1) if replacement else None

    def set_aside(self, path: Path) -> Path | None:
        """Move what lies at `path` to `.fedmed/replaced/`; None where nothing lies there."""
        if not path.exists():
            return None
        replaced = self.private / "replaced"
        make_folders(replaced)
        stamp = utc_now().replace(":", "").replace("-", "")
        for attempt in range(10_000):
            target = replaced / f"{path.name}-{stamp}-{attempt}"
            if not target.exists():
                os.rename(path, target)
                return target
        raise ConflictError(f"{replaced} is full", hint=f"delete old folders in {replaced}")

    def replace_folder(self, target: Path, files: dict[str, bytes | memoryview]) -> Path | None:
        """Write `target` new; what lay there is kept. Returns where the old folder is now, or None.

        The new folder is complete on disk before the old one moves; should its own move fail, the old one
        moves back. A process that is killed between the two moves leaves the second to the next `lock`.
        """
        staged = target.with_name(f".{target.name}.{os.getpid()}.new.tmp")
        shutil.rmtree(staged, ignore_errors=True)
        kept = None
        try:
            write_folder(staged, files)
            kept = self.set_aside(target)
            os.rename(staged, target)
        except BaseException:
            if kept is not None and not target.exists():
                os.rename(kept, target)
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync_folder(target.parent)
        return kept

    def log(self, event: str, **values: str | int | float | None) -> None:
        """Append one line to `metrics.jsonl`; a torn last line of a crash is cut off first."""
        path = self.root / "metrics.jsonl"
        new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o666)
        try:
            end = os.fstat(handle).st_size
            whole = end_of_last_line(handle, end)
            if whole != end:
                os.ftruncate(handle, whole)
                self.say("metrics.jsonl: dropped its torn last line, left by a command that was interrupted")
            try:
                write_all(handle, metric_line(event, **values))
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, whole)
                raise
        finally:
            os.close(handle)
        if new:
            sync_folder(self.root)

    def relative(self, path: Path) -> str:
        """`path` as people see it: relative to the workspace where it lies inside."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)
