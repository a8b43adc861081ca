"""The steps of a federation, each one call: what the commands run, and what `import fedmed_cli` offers.

Each takes the workspace's lock, checks everything that can be checked without a model, and loads torch and the base
model last; what reads data is imported where it is needed, for pyarrow takes longer to load than adapters to combine.
The data classes that they take and return are documented where they are defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.folder import AdapterFolder
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.data import coordinator_examples
from fedmed_cli.data.split_options import IndexOptions, SplitOptions
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.events import Events, Say, StageProgress
from fedmed_cli.federation import coordinator
from fedmed_cli.federation.coordinator import RoundResult
from fedmed_cli.federation.plan import PlanOptions, check_site, plan_for_sites
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.records.checks import POOLED, POOLED_PARALLEL
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.options import SiteSettings
from fedmed_cli.trust.keys import write_signed
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_file

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import Evaluator
    from fedmed_cli.data.sources import Source
    from fedmed_cli.data.split import SplitResult
    from fedmed_cli.federation.personalising import PersonalResult
    from fedmed_cli.federation.site import SiteResult
    from fedmed_cli.records.audit import Audit
    from fedmed_cli.records.comparison import Comparison
    from fedmed_cli.records.signatures import Signer
    from fedmed_cli.trust.ledger import Ledger


@dataclass(frozen=True)
class CompareOptions:
    """What `compare` measures beside base, sites' and global adapters, and on how many examples.

    `adapters` and `alone` name further adapters, the latter by the site that trained without the federation. `choices`
    is a file of multiple-choice questions, `generate` the number of test questions to answer, `questions` a file of
    questions to answer side by side (None: bundled ones), if `answers`. The pooled adapters are trained at
    `pooled_lr` (None: the plan's).
    """

    adapters: Sequence[str] = ()
    alone: Sequence[str] = ()
    all_rounds: bool = False
    pooled: bool = False
    pooled_parallel: bool = False
    pooled_lr: float | None = None
    by_column: Sequence[str] = ()
    max_eval_samples: int = 600
    choices: Path | None = None
    generate: int = 0
    questions: Path | None = None
    answers: bool = True
    max_new_tokens: int = 64


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison, where it was written, and where the answers side by side are (None where there are none)."""

    record: Comparison
    path: Path
    answers_path: Path | None


def split(
    workspace: Workspace,
    source: Source,
    options: SplitOptions,
    plan: PlanOptions = PlanOptions(),  # frozen
    *,
    say: Say = lambda message: None,
    progress: StageProgress = lambda what, done, total: None,
) -> SplitResult:
    """Make sites out of one data set: write `data/` and, where there is none, the plan.

    Where `options` name no label or group, the columns of `source` that are known to be that are used.
    """
    from fedmed_cli.data import split as splitting

    label = options.label or options.column or source.label_column
    options = replace(options, label=label, group_by=options.group_by or source.group_column)
    with workspace.lock():
        agreed = plan_for_sites(workspace, plan, options.names, say)
        return splitting.split(workspace, source, agreed, options, say, progress)


def train_site(
    workspace: Workspace,
    site: str,
    source: Source | None = None,
    options: IndexOptions = IndexOptions(),  # frozen
    *,
    settings: SiteSettings = SiteSettings(),  # frozen
    global_adapter: Path | None = None,
    base: BaseModel | None = None,
    signer: Signer | None = None,
    require_signatures: bool = False,
    ledger: Path | None = None,
    events: Events = Events(),  # frozen
) -> SiteResult:
    """Train a site's adapter on its own examples and write its contribution to `adapters/SITE/`.

    The examples are those of the hospital's own files, `source`, divided as `options` ask, else those in `data/SITE/`.
    It starts from `global_adapter`, a folder or bundle from the coordinator, which is checked and filed; else from the
    newest round here, or the plan's initial adapter. With `signer` the record is signed; with `require_signatures` an
    unsigned global adapter is refused. What the training costs in privacy goes into `ledger` (None: the user's own),
    but for the bundled corpus, which is of nobody.
    """
    from fedmed_cli.data import site_data

    plan = workspace.read_plan()
    check_site(plan, site)
    base = base or BaseModel(say=events.say)
    with workspace.lock():
        folder, is_new, round_number = None, False, workspace.newest_round() + 1
        if global_adapter is not None:
            from fedmed_cli.federation.received_global import accept_global

            folder, is_new = accept_global(workspace, plan, global_adapter, require_signatures, events.say)
            round_number = folder.record.round + 1
        start = folder.adapter if folder else archive.starting_adapter(workspace, plan, round_number)
        if source is not None:
            examples = site_data.file_data(workspace, plan, site, source, options, events.say)
        else:
            examples = site_data.workspace_data(workspace, site)
        base.find(plan.base)

        from fedmed_cli.federation.site import train_local

        events.say(f"site {site}, round {round_number}: {len(examples.train):,} training examples")
        return train_local(
            workspace,
            plan,
            base.load(plan.base),
            site,
            examples,
            start,
            round_number,
            settings,
            accepted=folder if is_new else None,
            signer=signer,
            ledger=_open_ledger(workspace, plan, site, source, settings, ledger, events.say),
            events=events,
        )


def _open_ledger(
    workspace: Workspace,
    plan: Plan,
    site: str,
    source: Source | None,
    settings: SiteSettings,
    path: Path | None,
    say: Say,
) -> Ledger | None:
    """The ledger; None where the examples are of nobody, and nothing about privacy is asked for."""
    has_patients = source.has_patients if source is not None else workspace.has_patients(site)
    if not has_patients and settings.privacy is None and settings.budget is None and plan.privacy.max_epsilon is None:
        return None

    from fedmed_cli.trust.ledger import Ledger, default_ledger_path

    return Ledger(path or default_ledger_path(), workspace.private / "privacy-seal.json", say)


def audit(
    workspace: Workspace,
    site: str,
    *,
    max_eval_samples: int = 600,
    base: BaseModel | None = None,
    events: Events = Events(),  # frozen
) -> tuple[Path, Audit]:
    """Measure what a site's contribution tells about its examples, and write `reports/audit-SITE.json`.

    An older audit is set aside. Returns the path and the record.
    """
    plan = workspace.read_plan()
    check_site(plan, site)
    base = base or BaseModel(say=events.say)
    with workspace.lock():
        folder = gate.read_contribution(workspace.contribution(site), plan, site=site, policy=None)
        base.find(plan.base)

        from fedmed_cli.federation.audit_gate import audit_path
        from fedmed_cli.federation.auditing import audit_site

        record = audit_site(workspace, plan, base.load(plan.base), site, folder, max_eval_samples, events)
        path = audit_path(workspace, site)
        workspace.set_aside(path)
        write_file(path, record.to_bytes())
    return path, record


def personalise(
    workspace: Workspace,
    site: str,
    *,
    settings: SiteSettings = SiteSettings(),  # frozen
    base: BaseModel | None = None,
    events: Events = Events(),  # frozen
) -> PersonalResult:
    """Make a site's private adapter of the newest global one and a training on its own examples, in `personal/SITE/`.

    It is written only where it is better than the global adapter on examples that chose nothing. UsageError where
    `settings` ask for privacy, a budget of it, canaries or `eval_steps`.
    """
    from fedmed_cli.data import site_data

    wanted = {name: getattr(settings, name) for name in ("privacy", "budget", "canaries")}
    wanted["options.eval_steps"] = settings.options.eval_steps
    if refused := [name for name, value in wanted.items() if value]:
        raise UsageError(f"a private adapter is trained without these settings: {', '.join(refused)}")
    plan = workspace.read_plan()
    check_site(plan, site)
    base = base or BaseModel(say=events.say)
    with workspace.lock():
        newest = workspace.newest_round()
        if not newest:
            raise InputError("there is no global adapter yet", hint="give the coordinator's to 'fedmed train-local'")
        start = archive.archived_global(workspace, plan, newest)
        examples = site_data.workspace_data(workspace, site)
        base.find(plan.base)

        from fedmed_cli.federation.personalising import personalise_site
        from fedmed_cli.federation.site import Task

        task = Task(workspace, plan, base.load(plan.base), site, start.adapter, newest + 1, settings, events)
        return personalise_site(task, examples, start)


def aggregate(
    workspace: Workspace,
    folders: Sequence[Path] | None = None,
    settings: AggregationSettings | None = None,
    *,
    exclude: Sequence[str] = (),
    output: Path | None = None,
    dry_run: bool = False,
    max_eval_samples: int | None = None,
    base: BaseModel | None = None,
    signer: Signer | None = None,
    require_signatures: bool = False,
    events: Events = Events(),  # frozen
) -> RoundResult:
    """Combine contributions (all of `adapters/` by default) into the next global adapter and file the round.

    Every folder must pass the gate first; if one does not, nothing is written. With `output` the result goes
    only there; with `dry_run` nowhere. The base model is loaded only where `settings` measure and the coordinator has
    examples. `settings` None: measured weights and step where it has, else by tokens.
    """
    plan = workspace.read_plan()
    settings = settings or coordinator.default_settings(workspace, say=events.say)
    base = base or BaseModel(say=events.say)
    with workspace.lock():
        paths = folders or sorted(path for path in workspace.adapters.glob("*") if not path.name.startswith("."))

        def make_evaluator() -> Evaluator | None:
            from fedmed_cli.evaluation import coordinator_set, measuring

            lm = base.load(plan.base)
            deciding = coordinator_set.coordinator_set(workspace, plan, lm, "decide", max_eval_samples, events.say)
            return measuring.evaluator(workspace, plan, lm, deciding, events.measured) if deciding else None

        measures = settings.measures and bool(coordinator_examples.half(workspace, "decide"))
        return coordinator.aggregate(
            workspace,
            paths,
            settings,
            exclude=tuple(exclude),
            output=output,
            dry_run=dry_run,
            make_evaluator=make_evaluator if measures else None,
            require_signatures=require_signatures,
            signer=signer,
            say=events.say,
        )


def compare(
    workspace: Workspace,
    options: CompareOptions = CompareOptions(),  # frozen
    *,
    site: str | None = None,
    base: BaseModel | None = None,
    signer: Signer | None = None,
    events: Events = Events(),  # frozen
    progress: StageProgress = lambda what, done, total: None,
) -> ComparisonResult:
    """Measure base, sites' and global adapters on test examples that nobody trained on or chose weights with.

    With `site`, on that hospital's own test examples; with `signer` what it may send is signed. Writes
    `reports/compare.json` (`compare-SITE.json`), and `reports/answers.md` where questions are answered side by side.
    `progress` is told the adapter, the examples done, and their number.
    """
    if options.pooled_lr is not None and not (options.pooled or options.pooled_parallel):
        raise UsageError("--pooled-lr goes with --pooled or --pooled-parallel")
    if options.pooled_lr is not None and not 0 < options.pooled_lr <= 1:
        raise UsageError(f"--pooled-lr: expected a rate above 0 and at most 1, found {options.pooled_lr:g}")
    plan = workspace.read_plan()
    if site is not None:
        check_site(plan, site)
    base = base or BaseModel(say=events.say)
    with workspace.lock():
        from fedmed_cli.evaluation import compare as comparing
        from fedmed_cli.evaluation import compared_adapters, mcq_files

        say = events.say
        tests = comparing.test_set(workspace, site, options.max_eval_samples, say)
        tests.check_columns(options.by_column)
        adapters = compared_adapters.workspace_adapters(workspace, plan, options.all_rounds, say)
        personal = compared_adapters.personal_adapters(workspace, plan, site, say)
        adapters |= {name: adapter for name, (_, adapter) in personal.items()}
        adapters |= compared_adapters.named_adapters(plan, options.adapters, adapters)
        local_only = compared_adapters.local_only(plan, options.alone)
        adapters |= {name: adapter for name, (_, adapter) in local_only.items()}
        multiple_choice = None
        if options.choices is not None:
            multiple_choice = mcq_files.read_questions(options.choices, options.max_eval_samples, say)
        questions = comparing.read_questions(options.questions) if options.answers else []
        wanted = {POOLED: options.pooled, POOLED_PARALLEL: options.pooled_parallel}
        bounds = [name for name, is_wanted in wanted.items() if is_wanted]
        pooled_inputs = []
        if bounds:
            from fedmed_cli.federation.pooled import gather

            pooled_inputs = gather(workspace, plan, bounds, options.pooled_lr, say)
        if not (adapters or bounds):
            say("there is no adapter yet: only the base model is measured")
        lm = base.load(plan.base)
        for pooled_input in pooled_inputs:
            from fedmed_cli.federation.pooled import pooled_adapter

            adapters[pooled_input.bound] = pooled_adapter(workspace, plan, lm, pooled_input, say, events.step)
        record = comparing.compare(
            workspace,
            plan,
            lm,
            adapters,
            tests,
            site=site,
            local_only={name: owner for name, (owner, _) in local_only.items()},
            personal={name: owner for name, (owner, _) in personal.items()},
            by_column=list(options.by_column),
            num_generated=options.generate,
            max_new_tokens=options.max_new_tokens,
            multiple_choice=multiple_choice,
            say=say,
            progress=progress,
        )
        path = workspace.reports / (f"compare-{site}.json" if site else "compare.json")
        write_signed(workspace, path, record, signer)
        answers_path = None
        if questions:
            answering = {"base": None} | {name: one for name, one in adapters.items() if name == "global"}
            say(f"answering {len(questions)} questions with {' and '.join(answering)}")
            text = comparing.answers_side_by_side(lm, plan, answering, questions, options.max_new_tokens)
            answers_path = workspace.reports / "answers.md"
            workspace.set_aside(answers_path)
            write_file(answers_path, text.encode())
    return ComparisonResult(record, path, answers_path)


def read_adapter(path: Path, plan: Plan | None = None) -> AdapterFolder:
    """Read an adapter folder or bundle through the gate, whoever signed it; with `plan` it must be one of that plan.

    Raises InputError, CombineError or TrustError for what the gate refuses.
    """
    return gate.read_from_anyone(path, plan)
