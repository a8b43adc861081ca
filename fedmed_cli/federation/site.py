"""A hospital's step in a round: its examples, its training, its contribution."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.adapters import card as cards
from fedmed_cli.adapters import gate
from fedmed_cli.adapters.gate import Adapter, AdapterFolder
from fedmed_cli.adapters.low_rank import cut_to_rank, update_norm
from fedmed_cli.adapters.signatures import Signer
from fedmed_cli.data import examples, identifiers, partition, row_index, split
from fedmed_cli.data.examples import Encoded, Example
from fedmed_cli.data.near_duplicates import SIMILARITY, Sketches
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.evaluation import losses as evaluation
from fedmed_cli.intervals import summarize
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import DivisionRecord, NearDuplicates
from fedmed_cli.training.checkpoints import Checkpoints
from fedmed_cli.training.log import journal
from fedmed_cli.training.loop import Step, order_seed, peak_memory, train
from fedmed_cli.training.options import Choices, Options
from fedmed_cli.trust.keys import signed
from fedmed_cli.workspace import DIVISION_NAME, Workspace, utc_now

Say = Callable[[str], None]


@dataclass(frozen=True)
class Events:
    """Where a long step reports to: `say` gets sentences, the others get numbers."""

    say: Say = lambda message: None
    step: Callable[[Step], None] | None = None
    measured: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class SiteData:
    """A site's training and validation examples; `pending` is the folder data/SITE to write once the step succeeded."""

    train: list[Example]
    validation: list[Example]
    group_by: str | None
    pending: dict[str, bytes]


@dataclass(frozen=True)
class SiteResult:
    """A contribution that was written, and where an older one was kept."""

    record: Contribution
    path: Path
    replaced: Path | None


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
    dataset: examples.Dataset,
    group_by: str | None,
    say: Say,
    *,
    near_duplicates: float | None = SIMILARITY,
    phi_mode: identifiers.Mode = "warn",
) -> SiteData:
    """Divide a hospital's own file into train, validation and test; nothing is written yet.

    `say` is told what was skipped, which identifiers were found, and where no test example is left.
    ConflictError where the workspace holds data of this site that came from `split`; InputError where
    `phi_mode` is block and there are identifiers.
    """
    folder = workspace.site_data(site)
    if folder.exists() and not (folder / DIVISION_NAME).exists():
        raise ConflictError(
            f"{workspace.relative(folder)} holds the examples that 'fedmed split' made",
            hint="leave --data away, or use another workspace",
        )
    split.tell_bad(dataset.bad, say)
    rows, found = _screened(dataset.examples, phi_mode, say)
    roots, near = _roots(rows, group_by, near_duplicates, workspace.private / "bands")
    chosen, num_groups = partition.divide_file(roots, [row.group(group_by) for row in rows], plan.training.seed)
    sets = {name: [rows[number] for number in numbers] for name, numbers in chosen.items()}
    for name in ("train", "validation"):
        if not sets[name]:
            raise InputError(f"--data: {num_groups} groups are too few: the {name} set would be empty")
    if not sets["test"]:
        say(f"--data: {num_groups} groups leave no test examples, so 'fedmed compare --site {site}' will have none")
    record = DivisionRecord(
        site=site,
        source_digest=dataset.digest,
        group_by=group_by,
        seed=plan.training.seed,
        train=len(sets["train"]),
        validation=len(sets["validation"]),
        test=len(sets["test"]),
        num_groups=num_groups,
        bad_rows=split.bad_row_counts(dataset.bad),
        near_duplicates=near,
        phi=phi_mode,
        phi_found=found,
        run={"created": utc_now()},
    )
    pending = {f"{name}.jsonl": examples.to_jsonl(members) for name, members in sets.items()}
    if _is_divided(folder, record, pending):
        pending = {}
    else:
        pending[DIVISION_NAME] = record.to_bytes()
    return SiteData(sets["train"], sets["validation"], group_by, pending)


def _screened(rows: list[Example], mode: identifiers.Mode, say: Say) -> tuple[list[Example], dict[str, int]]:
    """The examples as they are used, and how many identifiers of each kind the scan found."""
    if mode == "off":
        return rows, {}
    counts = [identifiers.count(row.question) + identifiers.count(row.answer) for row in rows]
    found = dict(sorted(sum(counts, Counter()).items()))
    split.tell_phi(mode, found, sum(map(bool, counts)), len(rows), say)
    if mode == "redact":
        rows = [
            replace(row, question=identifiers.redact(row.question), answer=identifiers.redact(row.answer))
            if count
            else row
            for row, count in zip(rows, counts, strict=True)
        ]
    return rows, found


def _roots(
    rows: Sequence[Example], group_by: str | None, similarity: float | None, scratch: Path
) -> tuple[partition.Ints, NearDuplicates | None]:
    """For each example the first one that it must stay with: by group, text or likeness."""
    if group_by is not None and not any(group_by in row.columns for row in rows):
        names = ", ".join(sorted({name[:40] for row in rows for name in row.columns})[:30]) or "no other column"
        raise InputError(f"the data have no column {group_by!r}, found {names}")
    texts = np.array([row_index.text_key(row.question, row.answer) for row in rows], dtype=np.uint64)
    groups = [row.columns.get(group_by) for row in rows] if group_by is not None else []
    keys = np.array([row_index.group_key(value) for value in groups], dtype=np.uint64) if groups else None
    roots = partition.roots_of(texts, keys, size=len(rows))
    if similarity is None:
        return roots, None
    sketches = Sketches(scratch)
    try:
        sketches.add([row.question for row in rows], [row.answer for row in rows])
        roots, alike = sketches.united(roots, similarity)
    finally:
        sketches.close()
    return roots, NearDuplicates(similarity, alike, 0, 0)


def _is_divided(folder: Path, record: DivisionRecord, files: dict[str, bytes]) -> bool:
    """Whether the folder already holds exactly this division."""
    if not folder.exists() or replace(DivisionRecord.read(folder / DIVISION_NAME), run=record.run) != record:
        return False
    return all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in files.items())


def train_local(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    site: str,
    data: SiteData,
    parent: Adapter,
    round_number: int,
    choices: Choices = Choices(),  # frozen
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
    options, max_steps = choices.options, choices.steps(plan, len(encoded))
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

    def prepared(rows: Sequence[Example], use: str) -> evaluation.EvaluationSet | None:
        if not rows:
            return None
        chosen = evaluation.choose(rows, choices.max_eval_samples, data.group_by)
        if len(chosen) < len(rows):
            events.say(f"site {site}: {use} on {len(chosen)} of {len(rows)} validation examples")
        return evaluation.prepare(lm, plan, chosen, data.group_by)

    choosing, reporting = _choosing_half(site, data) if options.eval_steps else ([], data.validation)
    judged = prepared(choosing, "choosing the step")
    validation = prepared(reporting, "measuring")
    if validation is None:
        events.say(f"site {site}: no validation examples, so no loss is measured")

    def measured(adapter: Adapter) -> Loss | None:
        if validation is None:
            return None
        losses = evaluation.measure_cached(workspace, plan, lm, adapter, validation, events.measured)
        return summarize(losses, validation.groups)

    def evaluate(adapter: Adapter) -> float:
        assert judged is not None
        return summarize(evaluation.measure(lm, adapter, judged.encoded, events.measured), judged.groups).mean

    before = measured(start)
    checkpoints = Checkpoints(
        workspace,
        workspace.private / "checkpoints" / f"{site}.npz",
        _identity(lm, plan, start, encoded, max_steps, options, judged, order_seed(plan, site, round_number)),
        events.say,
        choices.save_steps,
    )
    with journal(workspace, lm, site, round_number, choices.logging_steps, choices.report_to) as note:

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
        events.say(f"site {site}: stopped early behind step {steps} of {max_steps}")
    if trained.kept_step is not None:
        events.say(f"site {site}: keeps the adapter of step {trained.kept_step} of {steps}, the best on other examples")
    after = measured(trained.adapter)

    card = cards.site_card(
        plan.base,
        trained.adapter,
        site=site,
        round_number=round_number,
        steps=trained.kept_step or steps,
        num_examples=len(encoded),
        before=before,
        after=after,
    )
    files = gate.adapter_files(trained.adapter, card)
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
        files=gate.file_digests(trained.adapter, files),
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
    encoded = [examples.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
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
    options: Options,
    judged: evaluation.EvaluationSet | None,
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
