"""A hospital's step in a round: its examples, its training, its contribution."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmed_cli.adapters.adapter import Adapter, adapter_files, file_digests
from fedmed_cli.adapters.card import site_card
from fedmed_cli.adapters.folder import CONTRIBUTION_NAME, GlobalFolder
from fedmed_cli.adapters.low_rank import cut_to_rank, update_norm
from fedmed_cli.data.examples import Example
from fedmed_cli.data.site_data import SiteData
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.evaluation.measuring import EvaluationSet
from fedmed_cli.events import Events, Step
from fedmed_cli.federation.auditing import site_canaries
from fedmed_cli.federation.private_training import PrivateRun, open_account, plan_run
from fedmed_cli.federation.received_global import file_global
from fedmed_cli.intervals import summarize
from fedmed_cli.models import prompts
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.privacy import Privacy, UnitOfPrivacy
from fedmed_cli.records.signatures import Signer
from fedmed_cli.training.checkpoints import Checkpoints
from fedmed_cli.training.log import log_steps
from fedmed_cli.training.loop import Trained, order_seed, peak_memory, train
from fedmed_cli.training.options import SiteSettings
from fedmed_cli.training.private_steps import PrivateSteps, Unit
from fedmed_cli.trust.keys import sign_record
from fedmed_cli.trust.ledger import Ledger
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import private_files


@dataclass(frozen=True)
class SiteResult:
    """A contribution that was written, and where an older one was kept."""

    record: Contribution
    path: Path
    replaced: Path | None


@dataclass(frozen=True)
class Task:
    """One site's training in one round: where, of which model, from which adapter, and how."""

    workspace: Workspace
    plan: Plan
    lm: LanguageModel
    site: str
    parent: Adapter
    round_number: int
    settings: SiteSettings
    events: Events

    def say(self, message: str) -> None:
        self.events.say(f"site {self.site}: {message}")

    @property
    def seed(self) -> int:
        """The seed of the data order."""
        return order_seed(self.plan, self.site, self.round_number)


@dataclass(frozen=True)
class Prepared:
    """The adapter that a training starts from, its examples, and those to choose a step and to report with."""

    start: Adapter
    encoded: list[Encoded]
    units: tuple[Unit, ...]
    num_skipped: int
    num_canaries: int
    max_steps: int
    choosing: EvaluationSet | None
    reporting: EvaluationSet | None

    @property
    def num_truncated(self) -> int:
        return sum(tokens.truncated for tokens in self.encoded)


def train_local(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    site: str,
    data: SiteData,
    parent: Adapter,
    round_number: int,
    settings: SiteSettings = SiteSettings(),  # frozen
    *,
    accepted: GlobalFolder | None = None,
    signer: Signer | None = None,
    ledger: Ledger | None = None,
    events: Events = Events(),  # frozen
) -> SiteResult:
    """Train a site's adapter from `parent` and write its contribution to `adapters/SITE/`.

    A site of a lower rank than the plan's starts from the first components of `parent`. Until the training
    is done nothing outside `.fedmed/` is written; from a checkpoint in there a run that was killed goes on.
    `accepted` is a global adapter from the coordinator that is then filed as the previous round's. With
    `signer` the record is signed. The training is checked against `ledger` and entered there. The caller holds the
    workspace's lock.
    """
    began = time.perf_counter()
    task = Task(workspace, plan, lm, site, parent, round_number, settings, events)
    prepared = prepare(task, data)
    if prepared.reporting is None:
        task.say("no validation examples, so no loss is measured")
    run = _plan_private_run(task, data, prepared)
    account = None
    if ledger is not None:
        budget = settings.budget
        account = open_account(ledger, plan, site, round_number, data, len(prepared.units), run, budget)
    checkpoints = make_checkpoints(task, prepared, site)
    if account is not None and not checkpoints.is_complete(prepared.max_steps):  # else it may be entered already
        account.check()
    before = _measure(task, prepared, prepared.start)
    trained = train_prepared(task, prepared, run, checkpoints)
    after = _measure(task, prepared, trained.adapter)
    privacy = account.enter(trained.adapter.digest) if account else None
    files, record = _make_contribution(task, prepared, trained, privacy, before, after, began)
    files |= sign_record(CONTRIBUTION_NAME, files, signer)
    result = _file_away(task, data, files, record, accepted)
    checkpoints.remove()
    workspace.log(
        "train-local",
        round=round_number,
        site=site,
        steps=record.num_steps,
        adapter=record.adapter,
        validation_before=before.mean if before else None,
        validation_after=after.mean if after else None,
    )
    return result


def prepare(task: Task, data: SiteData) -> Prepared:
    """Encode all examples, and say what is skipped, cut, or measured in part."""
    plan, settings = task.plan, task.settings
    start = cut_to_rank(task.parent, plan.rank_of(task.site))
    if start.max_rank < task.parent.max_rank:
        task.say(f"trains rank {start.max_rank} of the plan's {task.parent.max_rank}")
    rows, num_canaries = list(data.train), 0
    if settings.canaries:
        canaries = site_canaries(task.workspace, task.lm, task.site, settings.canaries, task.say)
        rows += canaries.trained_on * settings.canary_repeats
        num_canaries = len(canaries.examples)
    each = _encode(task, rows)
    encoded = [tokens for tokens in each if tokens is not None]
    units: dict[str, list[Encoded]] = {}
    for row, tokens in zip(rows, each, strict=True):
        if tokens is not None:
            units.setdefault(row.group(data.group_by), []).append(tokens)
    choosing, reporting = split_validation(task.site, data) if settings.options.eval_steps else ([], data.validation)
    return Prepared(
        start,
        encoded,
        tuple(map(tuple, units.values())),
        len(rows) - len(encoded),
        num_canaries,
        settings.steps(plan, len(units) if settings.privacy else len(encoded)),
        make_evaluation_set(task, choosing, data.group_by, "choose the step"),
        make_evaluation_set(task, reporting, data.group_by, "measure"),
    )


def _encode(task: Task, rows: Sequence[Example]) -> list[Encoded | None]:
    """The examples, None for one that does not fit; InputError where none does."""
    max_length, budget = task.plan.training.max_length, task.settings.options.max_batch_tokens
    each = [prompts.encode(row, task.plan.prompt, task.lm.tokenizer, max_length) for row in rows]
    encoded = [tokens for tokens in each if tokens is not None]
    if not encoded:
        raise InputError(f"none of {len(rows)} training examples fits into max_length {max_length}")
    if len(encoded) < len(rows):
        task.say(f"{len(rows) - len(encoded)} of {len(rows)} examples skipped: the question alone fills max_length")
    if truncated := sum(tokens.truncated for tokens in encoded):
        task.say(f"{truncated} of {len(rows)} answers cut at max_length {max_length}")
    if budget and (longer := sum(len(tokens.ids) > budget for tokens in encoded)):
        task.say(
            f"{longer} of {len(encoded)} examples are longer than --max-batch-tokens {budget}; "
            "each is a forward pass of its own"
        )
    return each


def _plan_private_run(task: Task, data: SiteData, prepared: Prepared) -> PrivateRun | None:
    """The training by DP-SGD that the settings ask for, if they do."""
    settings = task.settings
    if settings.privacy is None:
        return None
    if settings.options.eval_steps is not None:
        raise InputError(
            "--eval-steps: a step chosen by the loss on private examples would tell about them what no noise covers",
            hint="omit --eval-steps with differential privacy",
        )
    unit: UnitOfPrivacy = "group" if data.group_by else "example"
    run = plan_run(settings.privacy, len(prepared.units), unit, settings.options.examples_per_step, prepared.max_steps)
    drawn, noise = settings.options.examples_per_step, run.mechanism.noise_multiplier
    task.say(
        f"differential privacy for each of {len(prepared.units):,} {unit}s: a step draws {drawn} of them on average, "
        f"noise multiplier {noise:.3g}"
    )
    return run


def split_validation(site: str, data: SiteData) -> tuple[list[Example], list[Example]]:
    """The validation examples in two disjoint halves, by group: to choose with, and to report on."""
    groups = sorted(
        {row.group(data.group_by) for row in data.validation}, key=lambda group: sha256_json(["step", group])
    )
    if len(groups) < 2:
        raise InputError(
            f"site {site}: {len(groups)} groups of validation examples are too few to choose with one half of them and "
            "to report on the other"
        )
    side = {group: number % 2 for number, group in enumerate(groups)}
    halves: tuple[list[Example], list[Example]] = ([], [])
    for row in data.validation:
        halves[side[row.group(data.group_by)]].append(row)
    return halves


def make_evaluation_set(task: Task, rows: Sequence[Example], group_by: str | None, use: str) -> EvaluationSet | None:
    if not rows:
        return None
    limit, what = task.settings.max_eval_samples, f"validation examples to {use} with"
    return measuring.choose(task.lm, task.plan, rows, limit, group_by, what, task.say)


def _measure(task: Task, prepared: Prepared, adapter: Adapter) -> Loss | None:
    """The loss on the reporting examples; None where there are none."""
    items = prepared.reporting
    if items is None:
        return None
    losses = measuring.measure_cached(task.workspace, task.plan, task.lm, adapter, items, task.events.measured)
    return summarize(losses, items.groups)


def make_checkpoints(task: Task, prepared: Prepared, name: str) -> Checkpoints:
    """Where this training is saved, under all that its bytes depend on, by the name people see when it has changed."""
    identity: dict[str, Any] = {
        "plan": task.plan.digest,
        "start": prepared.start.digest,
        "data": sha256_json([[tokens.ids, tokens.num_prompt] for tokens in prepared.encoded]),
        "choosing examples": prepared.choosing.digest if prepared.choosing else None,
        "options": {"max_steps": prepared.max_steps, **asdict(task.settings.options)},
        "privacy": asdict(task.settings.privacy) if task.settings.privacy else None,
        "round": task.seed,  # the seed of the data order tells site and round
        "machine or software": {**task.lm.environment(), "machine": platform.machine()},
    }
    path = task.workspace.private / "checkpoints" / f"{name}.npz"
    return Checkpoints(task.workspace, path, identity, task.events.say, task.settings.save_steps)


def train_prepared(task: Task, prepared: Prepared, run: PrivateRun | None, checkpoints: Checkpoints) -> Trained:
    settings, choosing = task.settings, prepared.choosing
    private = None
    if run is not None:
        private = PrivateSteps(
            prepared.units, run.mechanism.sampling_rate, run.mechanism.noise_multiplier, run.max_grad_norm
        )

    def evaluate(adapter: Adapter) -> float:
        assert choosing is not None
        losses = measuring.measure(task.lm, adapter, choosing.encoded, task.events.measured)
        return summarize(losses, choosing.groups).mean

    name = checkpoints.path.stem
    with log_steps(
        task.workspace, task.lm, name, task.round_number, settings.logging_steps, settings.report_to
    ) as note:

        def after_step(step: Step) -> None:
            note(step)
            if task.events.step:
                task.events.step(step)

        trained = train(
            task.lm,
            task.plan,
            prepared.start,
            prepared.encoded,
            prepared.max_steps,
            settings.options,
            seed=task.seed,
            round_number=task.round_number,
            private=private,
            evaluate=evaluate if choosing else None,
            checkpoints=checkpoints,
            progress=after_step,
            say=task.say,
        )
    steps = len(trained.losses)
    if steps < prepared.max_steps:
        task.say(f"stopped early after step {steps} of {prepared.max_steps}")
    if trained.kept_step is not None:
        task.say(f"keeps the adapter of step {trained.kept_step} of {steps}, the best on other examples")
    return trained


def _make_contribution(
    task: Task,
    prepared: Prepared,
    trained: Trained,
    privacy: Privacy | None,
    before: Loss | None,
    after: Loss | None,
    began: float,
) -> tuple[dict[str, bytes], Contribution]:
    """The files of the contribution with its record; `began` is what the clock showed when the work began.

    With `privacy` the losses of the steps stay here, and of what was drawn the record tells only what was expected.
    """
    plan, options, adapter = task.plan, task.settings.options, trained.adapter
    num_tokens = sum(tokens.num_supervised for tokens in prepared.encoded)
    trained_examples, trained_tokens, losses = trained.num_examples, trained.num_tokens, trained.losses
    if privacy is not None:
        expected = privacy.mechanism.sampling_rate * prepared.max_steps
        trained_examples, trained_tokens = int(expected * len(prepared.encoded)), int(expected * num_tokens)
        losses = ()
    card = site_card(
        plan.base,
        adapter,
        site=task.site,
        round_number=task.round_number,
        steps=trained.kept_step or len(trained.losses),
        num_examples=len(prepared.encoded),
        has_canaries=prepared.num_canaries > 0,
        before=before,
        after=after,
        privacy=privacy,
    )
    files = adapter_files(adapter, card)
    record = Contribution(
        site=task.site,
        round=task.round_number,
        plan=plan.digest,
        sites=plan.sites.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=task.parent.digest,
        adapter=adapter.digest,
        adapter_bytes=sum(map(len, files.values())),
        base_bytes=plan.base.num_bytes,
        num_examples=len(prepared.encoded),
        num_tokens=num_tokens,
        num_truncated=prepared.num_truncated,
        num_skipped=prepared.num_skipped,
        max_steps=prepared.max_steps,
        num_trained_examples=trained_examples,
        num_trained_tokens=trained_tokens,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kept_step=trained.kept_step,
        num_canaries=prepared.num_canaries,
        privacy=privacy,
        losses=tuple(round(loss, 6) for loss in losses),
        validation_before=before,
        validation_after=after,
        update_norm=update_norm(prepared.start, adapter),
        files=file_digests(adapter, files),
        run=task.lm.environment()
        | {
            "created": utc_now(),
            "peak_memory_bytes": peak_memory(task.lm.device),
            "seconds": round(time.perf_counter() - began, 3),
            "tokens_per_second": round(trained.tokens_per_second, 1),
        },
    )
    files[CONTRIBUTION_NAME] = record.to_bytes()
    return files, record


def _file_away(
    task: Task, data: SiteData, files: dict[str, bytes], record: Contribution, accepted: GlobalFolder | None
) -> SiteResult:
    """File the accepted global adapter, the divided file and the contribution, in this order."""
    workspace = task.workspace
    if accepted is not None:
        file_global(workspace, accepted)
    if data.pending:
        with private_files():
            workspace.replace_folder(workspace.site_data(task.site), dict(data.pending))
    target = workspace.contribution(task.site)
    return SiteResult(record, target, workspace.replace_folder(target, dict(files)))
