"""One self-contained HTML file about a federation, from its workspace's records alone. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmed_cli import __version__
from fedmed_cli.durable import write_file
from fedmed_cli.errors import ConflictError
from fedmed_cli.events import Say
from fedmed_cli.report import evidence, federation, svg, training, weights, wording
from fedmed_cli.report.page import GENERATOR, render
from fedmed_cli.report.workspace_facts import Checks, Facts, checks_of, gather
from fedmed_cli.trust.verify import Verification
from fedmed_cli.workspace import Workspace

REPORT_NAME = "report.html"
_MARK = f'<meta name="generator" content="{GENERATOR}">'.encode()


@dataclass(frozen=True)
class Written:
    """A report that was written: where, how large, whether with plots, and what could not be read."""

    path: Path
    num_bytes: int
    with_plots: bool
    problems: tuple[str, ...]


def write(
    workspace: Workspace,
    output: Path | None = None,
    *,
    answers: bool = True,
    checked: Verification | None = None,
    say: Say = lambda message: None,
) -> Written:
    """Write the report of a workspace to `output` (default: `reports/report.html`), in place of an older report.

    The same workspace gives the same bytes. `checked` is what `verify` found, where it was run. `say` is told
    what could not be read and where plots are left out. ConflictError where `output` is a file of another kind.
    """
    target = output or workspace.reports / REPORT_NAME
    if target.exists() and not _is_report(target):
        raise ConflictError(f"{target} exists already and is not a report", hint="name another file with --output")
    facts = gather(workspace)
    drawn = svg.available()
    if not drawn:
        say("matplotlib is not installed: the report shows tables without plots")
    for problem in facts.problems:
        say(f"left out of the report: {problem}")
    data = html(facts, drawn, answers, checks_of(checked, workspace) if checked else None).encode("utf-8")
    write_file(target, data)
    return Written(target, len(data), drawn, facts.problems)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(4096)


def html(facts: Facts, drawn: bool = True, answers: bool = True, checks: Checks | None = None) -> str:
    """The report's page."""
    sections = [
        federation.overview_section(facts, checks),
        evidence.comparison_section(facts, drawn),
        evidence.matrix_section(facts),
        weights.weights_section(facts, drawn),
        training.training_section(facts, drawn),
        training.data_section(facts, drawn),
        federation.plan_section(facts),
        evidence.answers_section(facts, answers),
        federation.bytes_section(facts),
        federation.lineage_section(facts, checks),
        federation.limits_section(),
    ]
    plan = facts.plan
    done = sum(one.aggregate is not None for one in facts.rounds)
    lead = [
        f"{wording.count(len(plan.sites.names), 'site')}, {wording.count(done, 'round')}, adapters for "
        f"{plan.base.name}. Sites exchange adapters and numbers; this report was made from their records, not from "
        "their data."
    ]
    if facts.newest:
        lead.append(f"Newest record: {facts.newest}.")
    footer = [
        f"Made by fedmed {__version__} from the records of one workspace. This file holds everything it shows: it "
        "loads nothing and runs no script."
    ]
    return render("Report of a federation", lead, sections, footer)
