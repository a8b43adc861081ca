"""The report on what was exchanged, and on which adapter was made of which."""

from __future__ import annotations

from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.digests import short
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Cell, Part, Section, Table, Text
from fedmed_cli.reporting.tables.verification import checked_table
from fedmed_cli.reporting.workspace_records import RoundRecords, WorkspaceRecords, without_root
from fedmed_cli.text import number_of_bytes
from fedmed_cli.trust.verify import Verification


def bytes_section(records: WorkspaceRecords) -> Section:
    """What travelled, and what would have without adapters."""
    title, base = "Bytes exchanged", records.plan.base.num_bytes
    rows: list[list[str]] = []
    up = down = transfers = 0
    sites = len(records.plan.sites.names)
    unknown: list[str] = []
    for one in records.rounds:
        for site in sorted(one.contributions):
            size = one.files[site].folder_bytes
            up, transfers = up + size, transfers + 1
            rows.append([f"{one.number}", f"{site} to the coordinator", f"{size:,}", _share_text(size, base)])
        if one.aggregate is None:
            continue
        if absent := sorted(set(one.aggregate.sites) - set(one.contributions)):
            unknown.append(f"round {one.number}: {', '.join(absent)}")
        size = one.files["global"].folder_bytes
        down, transfers = down + size * sites, transfers + sites
        rows.append([f"{one.number}", f"global, to each of {sites} sites", f"{size:,}", _share_text(size, base)])
    for site, record in records.waiting.items():
        size = record.adapter_bytes
        rows.append([f"{record.round}", f"{site}, waiting in adapters/", f"{size:,}", _share_text(size, base)])
    if not rows:
        return Section("bytes", title, [Text("Nothing has been exchanged yet.", "missing")])
    columns = ["round", "what", "bytes", "share of the model"]
    parts: list[Part] = [Table("Folders with their records", columns, rows, frozenset({1}))]
    if transfers:
        total = (
            f"In all {number_of_bytes(up)} from the sites and {number_of_bytes(down)} back to them. The same "
            f"{numbers.count(transfers, 'transfer')} of the whole model would be {number_of_bytes(base * transfers)}: "
            f"the adapters are {_share_text(up + down, base * transfers)} of that."
        )
        parts.insert(0, Text(total))
    if unknown:
        parts.append(Text(f"Contributions that are not here are not counted ({'; '.join(unknown)}).", "missing"))
    return Section("bytes", title, parts)


def _share_text(size: int, base: int) -> str:
    return numbers.percent(size / base) if base else ""


def lineage_section(records: WorkspaceRecords, verification: Verification | None) -> Section:
    """Which adapter was made of which, by the digests that the records name."""
    parts = _verified_parts(records, verification)
    rows: list[list[str | Cell]] = []
    digests: list[list[str]] = []
    before: RoundRecords | None = None
    for one in records.rounds:
        record = one.aggregate
        if record is None:
            rows.append([str(one.number), Cell("no record of a global adapter", "gone"), "", "", ""])
        else:
            signers = ", ".join(record.signers) or "none"
            started = _start_cell(record, before)
            rows.append([str(one.number), short(record.adapter), started, _contributions_cell(record, one), signers])
            digests.append([f"round {one.number}, global", record.adapter])
            digests += [[f"round {one.number}, {site}", each.adapter] for site, each in record.sites.items()]
        before = one
    digests += [[f"waiting, {site}", record.adapter] for site, record in records.waiting.items()]
    if rows:
        columns = ["round", "global adapter", "started from", "made of", "signed contributions"]
        parts.append(Table("Rounds by the records alone", columns, rows, frozenset({1, 2, 3, 4})))
    else:
        parts.append(Text("There is no round here yet.", "missing"))
    if digests:
        title = "Full digests of the adapters"
        parts.append(Table(title, ["adapter", "SHA-256"], digests, frozenset({1}), folded=True))
    return Section("lineage", "Lineage", parts)


def _verified_parts(records: WorkspaceRecords, verification: Verification | None) -> list[Part]:
    """What was checked of the records, and what that found."""
    if verification is None:
        about = (
            "Not verified: what follows is what the records say, compared with each other. Whether the weights have "
            "these digests, whether signatures hold and whether a recomputed round gives the same adapter is what "
            "'fedmed verify --recompute' checks; 'fedmed report --verify' puts its result here."
        )
        return [Text(about, "note")]
    if verification.faults:
        parts: list[Part] = [Text("Verified when this report was made, and it failed:", "fault")]
        faults = [without_root(fault.message, records.workspace) for fault in verification.faults]
        parts += [Text(f"Fault: {fault}.", "fault") for fault in faults]
    else:
        about = (
            "Verified when this report was made: the gate, digests, pinned signatures and lineage hold for all that is "
            "listed as checked. Rounds were not recomputed."
        )
        parts = [Text(about)]
    if verification.notes:
        title = f"Not proved: {numbers.count(len(verification.notes), 'note')}"
        notes = [without_root(note, records.workspace) for note in verification.notes]
        rows = [[what, why] for what, _, why in (note.partition(": ") for note in notes)]
        parts.append(Table(title, ["what", "why"], rows, frozenset({1}), folded=len(rows) > 3))
    if verification.checked:
        parts.append(checked_table(verification.checked))
    return parts


def _start_cell(record: Aggregate, before: RoundRecords | None) -> str | Cell:
    """What a round started from, and whether the records before it agree."""
    parent, number = short(record.parent), record.round - 1
    if not number:
        return f"{parent} (the plan's initial adapter, if it verifies)"
    if before is None or before.number != number or before.aggregate is None:
        return Cell(f"{parent} (round {number} is not here)", "gone")
    if record.parent != before.aggregate.adapter:
        return Cell(f"{parent}, which is not round {number}", "rejected")
    if record.parent_record is None:
        return f"round {number} (its record is not named)"
    if record.parent_record != before.files["global"].sha256:
        return Cell(f"round {number}, but its record was changed since", "rejected")
    return f"round {number}"


def _contributions_cell(record: Aggregate, one: RoundRecords) -> Cell:
    """The contributions by site: here and as the record names them, or not."""
    lines, kind = [], ""
    for site, decision in record.sites.items():
        state = ""
        if site not in one.contributions:
            state = ": not here"
        elif one.files[site].sha256 != decision.contribution:
            state, kind = ": its record here is another one", "rejected"
        lines.append(f"{site} {short(decision.adapter)}{state}")
    return Cell(lines=tuple(lines), kind=kind)
