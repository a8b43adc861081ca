"""Writing the report: one self-contained HTML file, made from a workspace's records. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmed_cli import __version__
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.errors import ConflictError, TrustError
from fedmed_cli.events import say_first
from fedmed_cli.reporting import numbers, svg
from fedmed_cli.reporting.page import GENERATOR, render
from fedmed_cli.reporting.sections import federation, lineage, results, training, weights
from fedmed_cli.reporting.workspace_records import WorkspaceRecords, read_records
from fedmed_cli.trust.verify import Verification
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_file

REPORT_NAME = "report.html"
_MARK = f'<meta name="generator" content="{GENERATOR}">'.encode()


@dataclass(frozen=True)
class ReportFile:
    """A report that was written: where, how large, whether with plots, and what could not be read.

    `untrusted` are the faults of what is left out because it is not signed as the plan or the policy asks.
    """

    path: Path
    num_bytes: int
    with_plots: bool
    problems: tuple[str, ...]
    untrusted: tuple[TrustError, ...]


def report(
    workspace: Workspace,
    output: Path | None = None,
    *,
    answers: bool = True,
    verification: Verification | None = None,
    policy: SignaturePolicy = SignaturePolicy(),
) -> ReportFile:
    """Write the report of a workspace to `output` (default: `reports/report.html`), in place of an older report.

    The same workspace gives the same bytes. `verification` is what `verify` found, where it was run. What a
    hospital sent is taken only if it is signed as the plan and the policy ask. The policy's `say` is also told what
    could not be read and where plots are left out. ConflictError where `output` is a file of another kind.
    """
    target = output or workspace.reports / REPORT_NAME
    if target.exists() and not _is_report(target):
        raise ConflictError(f"{target} exists already and is not a report", hint="name another file with --output")
    records = read_records(workspace, policy)
    with_plots = svg.available()
    if not with_plots:
        policy.say("matplotlib is not installed: the report shows tables without plots")
    problems = [f"left out of the report: {problem}" for problem in records.problems]
    say_first(policy.say, problems, "files, which the report names")
    data = html(records, answers, verification).encode("utf-8", "replace")  # a file's name need not be UTF-8
    write_file(target, data)
    return ReportFile(target, len(data), with_plots, records.problems, records.untrusted)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(4096)


def html(records: WorkspaceRecords, answers: bool = True, verification: Verification | None = None) -> str:
    """The report's page."""
    sections = [
        federation.overview_section(records, verification),
        results.comparison_section(records),
        results.matrix_section(records),
        weights.weights_section(records),
        training.training_section(records),
        training.data_section(records),
        federation.plan_section(records),
        results.answers_section(records, answers),
        lineage.bytes_section(records),
        lineage.lineage_section(records, verification),
        federation.limits_section(),
    ]
    plan = records.plan
    rounds = sum(one.aggregate is not None for one in records.rounds)
    lead = [
        f"{numbers.count(len(plan.sites.names), 'site')}, {numbers.count(rounds, 'round')}, adapters for "
        f"{plan.base.name}. Sites exchange adapters and numbers; this report was made from their records, not from "
        "their data."
    ]
    if records.newest:
        lead.append(f"Newest record: {records.newest}.")
    footer = [
        f"Made by fedmed {__version__} from the records of one workspace. This file holds everything it shows: it "
        "loads nothing and runs no script."
    ]
    return render("Report of a federation", lead, sections, footer)
