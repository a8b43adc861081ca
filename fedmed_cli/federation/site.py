"""A hospital's step in a round: its examples, its training, its contribution."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, adapter_files, file_digests
from fedmed_cli.adapters.card import site_card
from fedmed_cli.adapters.gate import AdapterFolder
from fedmed_cli.adapters.low_rank import cut_to_rank, update_norm
from fedmed_cli.adapters.signatures import Signer
from fedmed_cli.data.examples import Example
from fedmed_cli.data.site_data import SiteData
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.events import Events, Say, Step
from fedmed_cli.intervals import summarize
from fedmed_cli.models import prompts
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_json, short
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.checkpoints import Checkpoints
from fedmed_cli.training.log import log_steps
from fedmed_cli.training.loop import order_seed, peak_memory, train
from fedmed_cli.training.options import SiteSettings, TrainingOptions
from fedmed_cli.trust.keys import check_signer, signed
from fedmed_cli.workspace import Workspace, utc_now


@dataclass(frozen=True)
class SiteResult:
    """A contribution that was written, and where an older one was kept."""

    record: Contribution
    path: Path
    replaced: Path | None


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
    accepted: AdapterFolder | None = None,
    signer: Signer | None = None,
    events: Events = Events(),  # frozen
) -> SiteResult:
    """Train a site's adapter from `parent` and write its contribution to `adapters/SITE/`.

    A site of a lower rank than the plan's starts from the first components of `parent`. Until the training
    is done nothing outside `.fedmed/` is written; from a checkpoint in there a run that was killed goes on.
    `accepted` is a global adapter from the coordinator that is then filed as the round before. With
    `signer` the record is signed. The caller holds the workspace's lock.
    """
    began = time.perf_counter()
    start = cut_to_rank(parent, plan.rank_of(site))
    if start.max_rank < parent.max_rank:
        events.say(f"site {site}: trains rank {start.max_rank} of the plan's {parent.max_rank}")
    encoded, skipped = _encode(lm, plan, data.train)
    options, max_steps = settings.options, settings.steps(plan, len(encoded))
    truncated = sum(tokens.truncated for tokens in encoded)
    if skipped:
        events.say(f"site {site}: {skipped} of {len(data.train)} examples skipped: the question alone fills max_length")
    if truncated:
        events.say(
            f"site {site}: {truncated} of {len(data.train)} answers cut at max_length {plan.training.max_length}"
        )

    longer = sum(len(tokens.ids) > (options.max_batch_tokens or len(tokens.ids)) for tokens in encoded)
    if longer:
        events.say(
            f"site {site}: {longer} of {len(encoded)} examples are longer than --max-batch-tokens "
            f"{options.max_batch_tokens}; each is a forward pass of its own"
        )

    def prepared(rows: Sequence[Example], use: str) -> measuring.EvaluationSet | None:
        if not rows:
            return None
        chosen = measuring.choose(rows, settings.max_eval_samples, data.group_by)
        if len(chosen) < len(rows):
            events.say(f"site {site}: {use} on {len(chosen)} of {len(rows)} validation examples")
        return measuring.prepare(lm, plan, chosen, data.group_by)

    choosing, reporting = _choosing_half(site, data) if options.eval_steps else ([], data.validation)
    judged = prepared(choosing, "choosing the step")
    validation = prepared(reporting, "measuring")
    if validation is None:
        events.say(f"site {site}: no validation examples, so no loss is measured")

    def measured(adapter: Adapter) -> Loss | None:
        if validation is None:
            return None
        losses = measuring.measure_cached(workspace, plan, lm, adapter, validation, events.measured)
        return summarize(losses, validation.groups)

    def evaluate(adapter: Adapter) -> float:
        assert judged is not None
        return summarize(measuring.measure(lm, adapter, judged.encoded, events.measured), judged.groups).mean

    before = measured(start)
    checkpoints = Checkpoints(
        workspace,
        workspace.private / "checkpoints" / f"{site}.npz",
        _identity(lm, plan, start, encoded, max_steps, options, judged, order_seed(plan, site, round_number)),
        events.say,
        settings.save_steps,
    )
    with log_steps(workspace, lm, site, round_number, settings.logging_steps, settings.report_to) as note:

        def stepped(step: Step) -> None:
            note(step)
            if events.step:
                events.step(step)

        trained = train(
            lm,
            plan,
            start,
            encoded,
            max_steps,
            options,
            seed=order_seed(plan, site, round_number),
            round_number=round_number,
            evaluate=evaluate if judged else None,
            checkpoints=checkpoints,
            progress=stepped,
            say=lambda message: events.say(f"site {site}: {message}"),
        )
    steps = len(trained.losses)
    if steps < max_steps:
        events.say(f"site {site}: stopped early after step {steps} of {max_steps}")
    if trained.kept_step is not None:
        events.say(f"site {site}: keeps the adapter of step {trained.kept_step} of {steps}, the best on other examples")
    after = measured(trained.adapter)

    card = site_card(
        plan.base,
        trained.adapter,
        site=site,
        round_number=round_number,
        steps=trained.kept_step or steps,
        num_examples=len(encoded),
        before=before,
        after=after,
    )
    files = adapter_files(trained.adapter, card)
    record = Contribution(
        site=site,
        round=round_number,
        plan=plan.digest,
        sites=plan.sites.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=parent.digest,
        adapter=trained.adapter.digest,
        adapter_bytes=sum(map(len, files.values())),
        base_bytes=plan.base.num_bytes,
        num_examples=len(encoded),
        num_tokens=sum(tokens.num_supervised for tokens in encoded),
        num_truncated=truncated,
        num_skipped=skipped,
        max_steps=max_steps,
        num_trained_examples=trained.num_examples,
        num_trained_tokens=trained.num_tokens,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kept_step=trained.kept_step,
        losses=tuple(round(loss, 6) for loss in trained.losses),
        validation_before=before,
        validation_after=after,
        update_norm=update_norm(start, trained.adapter),
        files=file_digests(trained.adapter, files),
        run=lm.environment()
        | {
            "created": utc_now(),
            "peak_memory_bytes": peak_memory(lm.device),
            "seconds": round(time.perf_counter() - began, 3),
            "tokens_per_second": round(trained.tokens_per_second, 1),
        },
    )
    files[gate.CONTRIBUTION_NAME] = record.to_bytes()
    files |= signed(gate.CONTRIBUTION_NAME, files, signer)

    if accepted is not None:
        round_before = {f"global/{name}": content for name, content in accepted.files.items()}
        workspace.replace_folder(workspace.round(round_number - 1), dict(round_before))
    if data.pending:
        workspace.replace_folder(workspace.site_data(site), dict(data.pending))
    target = workspace.contribution(site)
    replaced = workspace.replace_folder(target, dict(files))
    checkpoints.remove()
    workspace.log(
        "train-local",
        round=round_number,
        site=site,
        steps=steps,
        adapter=record.adapter,
        validation_before=before.mean if before else None,
        validation_after=after.mean if after else None,
    )
    return SiteResult(record, target, replaced)


def _encode(lm: LanguageModel, plan: Plan, rows: Sequence[Example]) -> tuple[list[Encoded], int]:
    encoded = [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
    kept = [tokens for tokens in encoded if tokens is not None]
    if not kept:
        raise InputError(f"none of {len(rows)} training examples fits into max_length {plan.training.max_length}")
    return kept, len(encoded) - len(kept)


def _choosing_half(site: str, data: SiteData) -> tuple[list[Example], list[Example]]:
    """The validation examples in two disjoint halves, by group: to choose a step with, and to report on."""
    groups = sorted(
        {row.group(data.group_by) for row in data.validation}, key=lambda group: sha256_json(["step", group])
    )
    if len(groups) < 2:
        raise InputError(
            f"site {site}: {len(groups)} groups of validation examples are too few to choose a step with --eval-steps "
            "on one half of them and to report on the other"
        )
    side = {group: number % 2 for number, group in enumerate(groups)}
    halves: tuple[list[Example], list[Example]] = ([], [])
    for row in data.validation:
        halves[side[row.group(data.group_by)]].append(row)
    return halves


def _identity(
    lm: LanguageModel,
    plan: Plan,
    start: Adapter,
    encoded: Sequence[Encoded],
    max_steps: int,
    options: TrainingOptions,
    judged: measuring.EvaluationSet | None,
    seed: int,
) -> dict[str, Any]:
    """All that a training's bytes depend on, by the name that people are told when it has changed."""
    return {
        "plan": plan.digest,
        "start": start.digest,
        "data": sha256_json([[tokens.ids, tokens.num_prompt] for tokens in encoded]),
        "choosing examples": judged.digest if judged else None,
        "options": {"max_steps": max_steps, **asdict(options)},
        "round": seed,  # the seed of the data order tells site and round
        "machine or software": {**lm.environment(), "machine": platform.machine()},
    }


def accept_global(
    workspace: Workspace, plan: Plan, path: Path, require_signatures: bool = False, say: Say = lambda message: None
) -> tuple[AdapterFolder, int, bool]:
    """Check a global adapter that came from the coordinator: it, its round, and whether it is new here.

    It must be of the newest round known here or a later one; a different adapter for a known round is refused.
    """
    folder = gate.read_global(path, plan)
    check_signer(folder, plan, require_signatures, say)
    record = folder.aggregate
    assert record is not None
    filed = workspace.global_adapter(record.round)
    if filed.exists():
        known = gate.read_global(filed, plan)
        if known.adapter.digest != folder.adapter.digest:
            raise ConflictError(
                f"{path}: round {record.round} is already filed here with adapter {short(known.adapter.digest)}, "
                f"found {short(folder.adapter.digest)}",
                hint="ask the coordinator which of the two holds",
            )
        return folder, record.round, False
    if record.round < workspace.newest_round():
        raise ConflictError(f"{path}: is of round {record.round}, but round {workspace.newest_round()} is filed here")
    return folder, record.round, True
