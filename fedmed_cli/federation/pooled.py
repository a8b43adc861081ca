"""The upper bounds of a federation on one machine: one adapter trained on all sites' examples put together.

`pooled` walks all sites' steps one after the other: what is lost in all by not moving the records. `pooled-parallel`
walks as many steps as one site, with the examples of all sites' steps in each: what is lost to training apart.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedmed_cli.adapters import archive, card, gate
from fedmed_cli.adapters.adapter import Adapter, adapter_files
from fedmed_cli.data import examples
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.events import Say, Step
from fedmed_cli.models import prompts
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.checks import BOUNDS, POOLED, POOLED_PARALLEL
from fedmed_cli.records.comparison import Pooled
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.checkpoints import Checkpoints
from fedmed_cli.training.loop import Trained, order_seed, train
from fedmed_cli.training.options import MOST_STEPS, TrainingOptions
from fedmed_cli.workspace import Workspace, utc_now

RECORD_NAME = "pooled.json"


@dataclass(frozen=True)
class PooledInput:
    """All sites' examples, and what the federation spent in all rounds, which the training of `bound` may spend too.

    `learning_rate` None is the plan's.
    """

    bound: str
    rows: Sequence[Example]
    rounds: int
    steps: int
    tokens: int
    batch_size: int
    accumulation: int
    learning_rate: float | None = None


def pooled_adapter(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    wanted: PooledInput,
    say: Say = lambda message: None,
    step: Callable[[Step], None] | None = None,
) -> Adapter:
    """A pooled adapter of this workspace's rounds, trained now or taken from `reports/pooled/`.

    It starts from the plan's initial adapter; a training that was interrupted goes on from its checkpoint. The caller
    holds the lock.
    """
    rows, bound = wanted.rows, wanted.bound
    digest = examples.set_digest(rows)
    seed = order_seed(plan, bound, wanted.rounds)
    rate = wanted.learning_rate or plan.training.learning_rate
    training = [wanted.steps, wanted.batch_size, wanted.accumulation, seed, rate]
    key = sha256_json([plan.digest, digest, training, [lm.device.type, str(lm.dtype), lm.quantized]])
    folder = workspace.reports / bound
    made = _load_pooled(folder, plan, key)
    if made is not None:
        say(f"the {bound} adapter of {wanted.steps} steps is taken from {workspace.relative(folder)}")
        return made
    encoded = [prompts.encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in rows]
    usable = [tokens for tokens in encoded if tokens is not None]
    if len(usable) < len(rows):
        say(f"{bound}: {len(rows) - len(usable)} of {len(rows)} examples skipped: the question fills max_length")
    size = wanted.batch_size * wanted.accumulation
    say(f"training the {bound} adapter: {wanted.steps} steps of {size} out of {len(usable):,} examples of all sites")
    started = time.perf_counter()
    start = archive.starting_adapter(workspace, plan, 1)
    environment = {**lm.environment(), "machine": platform.machine()}
    identity = {"plan": plan.digest, "examples, steps or options": key, "machine or software": environment}
    checkpoints = Checkpoints(workspace, workspace.private / "checkpoints" / f"{bound}.npz", identity, say)
    trained = _train(lm, plan, start, usable, wanted, seed, checkpoints, say, step)
    say(f"{bound}: {trained.num_tokens:,} answer tokens; the federation's rounds used {wanted.tokens:,}")
    record = Pooled(
        key=key,
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=start.digest,
        adapter=trained.adapter.digest,
        examples_digest=digest,
        num_examples=len(usable),
        num_trained_tokens=trained.num_tokens,
        num_federated_tokens=wanted.tokens,
        rounds=wanted.rounds,
        max_steps=wanted.steps,
        per_device_train_batch_size=wanted.batch_size,
        gradient_accumulation_steps=wanted.accumulation,
        losses=tuple(round(loss, 6) for loss in trained.losses),
        learning_rate=wanted.learning_rate,
        run=lm.environment() | {"created": utc_now(), "seconds": round(time.perf_counter() - started, 3)},
    )
    readme = card.card(
        plan.base,
        trained.adapter,
        "Pooled adapter: an upper bound",
        "Trained by fedmed on all sites' examples together, to compare a federation with. It is not a global adapter.",
    )
    files = {f"adapter/{name}": data for name, data in adapter_files(trained.adapter, readme).items()}
    workspace.replace_folder(folder, {**files, RECORD_NAME: record.to_bytes()})
    checkpoints.remove()
    return trained.adapter


def _train(
    lm: LanguageModel,
    plan: Plan,
    start: Adapter,
    encoded: Sequence[Encoded],
    wanted: PooledInput,
    seed: int,
    checkpoints: Checkpoints,
    say: Say,
    step: Callable[[Step], None] | None,
) -> Trained:
    """Train on everything at once: one schedule over all steps, and no pull to where a round began."""
    rate = wanted.learning_rate or plan.training.learning_rate
    training = replace(plan.training, learning_rate=rate, lr_scheduler_rounds=1, fedprox_mu=0.0)
    options = TrainingOptions(
        per_device_train_batch_size=wanted.batch_size,
        gradient_accumulation_steps=wanted.accumulation,
    )
    return train(
        lm,
        replace(plan, training=training),
        start,
        encoded,
        wanted.steps,
        options,
        seed=seed,
        checkpoints=checkpoints,
        progress=step,
        say=say,
    )


def gather(
    workspace: Workspace, plan: Plan, bounds: Sequence[str], learning_rate: float | None, say: Say
) -> list[PooledInput]:
    """What the trainings of these upper bounds need, without a model.

    InputError where contributions or examples are not here, UsageError where a site has the name of a bound.
    """
    for taken in sorted(set(BOUNDS) & set(plan.sites.names)):
        raise UsageError(f"--pooled: {taken} is a site of this plan, so it cannot name an upper bound")
    newest = workspace.newest_round()
    if not newest:
        raise InputError("--pooled: there is no round to compare with", hint="run 'fedmed round' first")
    records = [record for number in range(1, newest + 1) for record in _read_contributions(workspace, plan, number)]
    sizes = Counter((record.per_device_train_batch_size, record.gradient_accumulation_steps) for record in records)
    (size, accumulation), _ = sizes.most_common(1)[0]
    if len(sizes) > 1:
        seen = ", ".join(f"{one} x {other}" for one, other in sorted(sizes))
        say(f"pooled: the sites trained with batches of {seen} examples; it takes {size} x {accumulation}")
    tokens = sum(record.num_trained_tokens for record in records)
    sequential = PooledInput(
        bound=POOLED,
        rows=_read_all_examples(workspace, plan),
        rounds=newest,
        steps=sum(record.num_steps for record in records),
        tokens=tokens,
        batch_size=size,
        accumulation=accumulation,
        learning_rate=learning_rate,
    )
    steps_of_sites: Counter[str] = Counter()
    for record in records:
        steps_of_sites[record.site] += record.num_steps
    parallel = replace(
        sequential,
        bound=POOLED_PARALLEL,
        steps=max(steps_of_sites.values()),
        batch_size=size * len(steps_of_sites),
    )
    wanted = [one for one in (sequential, parallel) if one.bound in bounds]
    for one in wanted:
        if one.steps > MOST_STEPS:
            raise InputError(
                f"--{one.bound}: {one.steps:,} steps in all rounds are more than a record can hold ({MOST_STEPS:,})",
                hint="take --pooled-parallel alone: its steps are one site's" if one is sequential else None,
            )
    return wanted


def _read_contributions(workspace: Workspace, plan: Plan, number: int) -> list[Contribution]:
    """The records of those who took part in a round. InputError where one is not here."""
    records = []
    for site in archive.archived_global(workspace, plan, number).record.sites:
        path = workspace.round(number) / site
        if not path.is_dir():
            raise InputError(
                f"--pooled: {workspace.relative(path)} is not here",
                hint="a pooled adapter is for one machine that has all sites' examples and contributions",
            )
        records.append(archive.archived_contribution(workspace, plan, number, site).record)
    return records


def _read_all_examples(workspace: Workspace, plan: Plan) -> list[Example]:
    rows: list[Example] = []
    for site in plan.sites.names:
        path = workspace.site_data(site) / "train.jsonl"
        if examples.find_set(path) is None:
            raise InputError(
                f"--pooled: {workspace.relative(path)} is not here",
                hint="a pooled adapter is for one machine that has all sites' examples",
            )
        rows += examples.read_jsonl(path)
    return rows


def _load_pooled(folder: Path, plan: Plan, key: str) -> Adapter | None:
    """The adapter in `folder` where it was trained with just this `key`."""
    if not (folder / RECORD_NAME).exists():
        return None
    record = Pooled.read(folder / RECORD_NAME)
    if record.key != key:
        return None
    adapter = gate.read_from_anyone(folder / "adapter", plan).adapter  # fedmed's own, which nobody sends
    return adapter if adapter.digest == record.adapter else None
