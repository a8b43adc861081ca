"""A hospital's examples: what split made, or its own file, divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data import examples, identifiers, row_index, screening
from fedmed_cli.data.batches import as_texts, json_lines
from fedmed_cli.data.examples import Example
from fedmed_cli.data.row_index import Index
from fedmed_cli.data.same_text import keyed_hash
from fedmed_cli.data.sources import Source
from fedmed_cli.data.split_options import IndexOptions
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.events import Say
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import DivisionRecord, NearDuplicates
from fedmed_cli.workspace import DIVISION_NAME, Workspace, utc_now

SHARES = {"validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class SiteData:
    """A site's training and validation examples; `pending` is the folder data/SITE to write once the step succeeded."""

    train: list[Example]
    validation: list[Example]
    group_by: str | None
    pending: dict[str, bytes]


def workspace_data(workspace: Workspace, site: str) -> SiteData:
    """The examples that `split`, or an earlier `train-local --data`, put into the workspace."""
    folder = workspace.site_data(site)
    if examples.find_set(folder / "train.jsonl") is None:
        raise InputError(
            f"{workspace.relative(folder)}: holds no train.jsonl for site {site}",
            hint=f"give the hospital's own file with --data FILE, or copy the folder data/{site} here",
        )
    validation = folder / "validation.jsonl"
    return SiteData(
        examples.read_jsonl(folder / "train.jsonl"),
        examples.read_jsonl(validation) if examples.find_set(validation) else [],
        workspace.group_column(site),
        {},
    )


def file_data(
    workspace: Workspace,
    plan: Plan,
    site: str,
    source: Source,
    options: IndexOptions,
    say: Say,
) -> SiteData:
    """Divide a hospital's own file into train, validation and test; nothing is written yet.

    `say` is told what was skipped, which identifiers were found, and where no test example is left.
    ConflictError where the workspace holds data of this site that came from `split`; InputError where
    `options.phi` is block and there are identifiers.
    """
    folder, seed = workspace.site_data(site), plan.training.seed
    refuse_split_data(workspace, site)
    source.fetch(workspace.private / "hub")
    index = row_index.build(source, options, seed, workspace.private / "bands", say, order_by_group=True)
    num_groups = len(np.unique(index.group_of))
    sets = divide_by_hash(index, seed)
    for name in ("train", "validation"):
        if not len(sets[name]):
            raise InputError(f"--data: {num_groups} groups are too few: the {name} set would be empty")
    if not len(sets["test"]):
        say(f"--data: {num_groups} groups leave no test examples, so 'fedmed compare --site {site}' will have none")
    rows, lines = _read_all(source, options.phi)
    near = None
    if options.near_duplicates is not None:
        near = NearDuplicates(options.near_duplicates, index.num_near_duplicates, num_pairs=0, num_torn=0)
    record = DivisionRecord(
        site=site,
        source_digest=source.digest(),
        group_by=options.group_by,
        seed=seed,
        train=len(sets["train"]),
        validation=len(sets["validation"]),
        test=len(sets["test"]),
        num_groups=num_groups,
        bad_rows=index.bad.to_record(),
        near_duplicates=near,
        phi=options.phi,
        phi_found=index.identifiers.by_kind(),
        run={"created": utc_now()},
    )
    pending = {
        f"{name}.jsonl": "".join(lines[row] for row in members).encode()
        for name, members in sets.items()
        if len(members)
    }
    pending = {} if _is_divided(folder, record, pending) else {**pending, DIVISION_NAME: record.to_bytes()}
    train, validation = ([rows[row] for row in sets[name]] for name in ("train", "validation"))
    return SiteData(train, validation, options.group_by, pending)


def refuse_split_data(workspace: Workspace, site: str) -> None:
    """ConflictError where the workspace holds data of this site that came from `split`."""
    folder = workspace.site_data(site)
    if folder.exists() and not (folder / DIVISION_NAME).exists():
        raise ConflictError(
            f"{workspace.relative(folder)} holds the examples that 'fedmed split' made",
            hint="omit --data, or use another workspace",
        )


def divide_by_hash(index: Index, seed: int) -> dict[str, NDArray[np.int64]]:
    """The rows of train, validation and test, by a keyed hash of each leakage group.

    A file that grows moves no row from one set to another, unless new rows join two groups into one. The rows of a
    group follow its first one.
    """
    _, number = np.unique(index.group_of, return_inverse=True)
    least = np.full(number.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, number, index.order)
    # The least of several hashes is not uniform: hash it once more.
    drawn = [_to_fraction(keyed_hash(repr(_to_fraction(value)), seed)) for value in least.tolist()]
    test, validation = SHARES["test"], SHARES["test"] + SHARES["validation"]
    set_of = np.searchsorted([test, validation], drawn, side="right")[number]
    rows = np.argsort(number, kind="stable")
    return {name: rows[set_of[rows] == at] for at, name in ((2, "train"), (1, "validation"), (0, "test"))}


def _to_fraction(number: int) -> float:
    """The first 52 of 64 bits as a number from 0 to 1."""
    return (number >> 12) / 2**52


def _read_all(source: Source, phi: identifiers.Mode) -> tuple[list[Example], list[str]]:
    """All examples of a source, and their JSON lines. ConflictError where it has changed since it was opened."""
    rows: list[Example] = []
    lines: list[str] = []
    # An example's id is that of the text in the file, not of the redacted one.
    with_ids = (replace(batch, given_ids=as_texts(batch.ids)) for batch in source.batches())
    for batch in screening.screen(with_ids, phi):
        rows += examples.from_batch(batch)
        lines += json_lines(batch)
    source.check_unchanged()
    return rows, lines


def _is_divided(folder: Path, record: DivisionRecord, files: Mapping[str, bytes]) -> bool:
    """Whether the folder already holds exactly this division."""
    if not folder.exists() or replace(DivisionRecord.read(folder / DIVISION_NAME), run=record.run) != record:
        return False
    return all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in files.items())
