"""A hospital's private adapter: the global one with as much of the hospital's own training as its examples bear out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from fedmed_cli.adapters import card
from fedmed_cli.adapters.adapter import Adapter, adapter_files, file_digests
from fedmed_cli.adapters.folder import PERSONAL_NAME, GlobalFolder
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.data.site_data import SiteData
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.federation.site import (
    Task,
    make_checkpoints,
    make_evaluation_set,
    prepare,
    split_validation,
    train_prepared,
)
from fedmed_cli.intervals import Losses, paired_interval
from fedmed_cli.records.checks import PERSONAL
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import utc_now
from fedmed_cli.workspace.durable import private_files

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PersonalResult:
    """What was measured at each share on one half of the validation examples, and what came of it on the other.

    `record` and `path` are None where the global adapter is as good as any mixture.
    """

    losses: dict[float, float]
    share: float
    change: Interval | None
    num_choosing: int
    num_deciding: int
    record: Personal | None
    path: Path | None


def personalise_site(task: Task, data: SiteData, start: GlobalFolder) -> PersonalResult:
    """Train from the global adapter `start` on a site's own examples and write `personal/SITE/` if that helps there.

    It takes as many steps as the plan has in all rounds so far, if the settings say nothing else: what the hospital
    could have walked alone.
    The share of the training that is mixed in is the one of SHARES with the least loss on one half of the validation
    examples. It is adopted where it is better than the global adapter on the other half beyond chance (95 %); else an
    older private adapter is set aside. The caller holds the workspace's lock.
    """
    began = time.perf_counter()
    workspace, plan, lm, site = task.workspace, task.plan, task.lm, task.site
    choosing, deciding = (
        make_evaluation_set(task, half, data.group_by, use)
        for half, use in zip(split_validation(site, data), ("choose the share", "decide"), strict=True)
    )
    assert choosing is not None and deciding is not None  # noqa: PT018  # each half has a group
    if len(set(deciding.groups)) < 2:
        raise InputError(
            f"site {site}: the half of the validation examples that decides has one group, which gives no interval",
            hint="personalise where there are more patients or groups",
        )
    settings = task.settings
    if settings.max_steps is None and settings.num_train_epochs is None:
        settings = replace(settings, max_steps=plan.training.max_steps * start.record.round)
    one_schedule = replace(plan, training=replace(plan.training, lr_scheduler_rounds=1))  # the rounds' own may be over
    training = replace(task, plan=one_schedule, settings=settings)
    prepared = prepare(training, replace(data, validation=[]))  # which this divides by itself
    checkpoints = make_checkpoints(training, prepared, f"{PERSONAL}{site}")
    trained = train_prepared(training, prepared, None, checkpoints)
    mixtures = {share: mix(plan, task.parent, trained.adapter, share) for share in SHARES}

    def measure(share: float, items: measuring.EvaluationSet) -> Losses:
        return measuring.measure_cached(workspace, plan, lm, mixtures[share], items, task.events.measured)

    losses = {share: measure(share, choosing).mean for share in SHARES}
    best = min(SHARES, key=lambda share: (losses[share], share))
    change = paired_interval(measure(best, deciding), measure(0.0, deciding), deciding.groups) if best else None
    result = PersonalResult(losses, best, change, len(choosing.examples), len(deciding.examples), None, None)
    if change is None or change.high >= 0:
        if workspace.set_aside(workspace.personal(site)):
            task.say("the private adapter that was here is kept in .fedmed/replaced")
        checkpoints.remove()
        return result
    adapter = mixtures[best]
    files = adapter_files(adapter, _card(plan, adapter, site, start, best))
    record = Personal(
        site=site,
        round=start.record.round,
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=start.adapter.digest,
        adapter=adapter.digest,
        share=best,
        losses={f"{share:g}": round(loss, 6) for share, loss in losses.items()},
        change=change,
        num_choosing=len(choosing.examples),
        num_deciding=len(deciding.examples),
        num_groups=len(set(deciding.groups)),
        num_examples=len(prepared.encoded),
        num_steps=len(trained.losses),
        files=file_digests(adapter, files),
        run=lm.environment() | {"created": utc_now(), "seconds": round(time.perf_counter() - began, 3)},
    )
    path = workspace.personal(site)
    with private_files():
        workspace.replace_folder(path, {**files, PERSONAL_NAME: record.to_bytes()})
    checkpoints.remove()
    return replace(result, record=record, path=path)


def mix(plan: Plan, start: Adapter, trained: Adapter, share: float) -> Adapter:
    """`start` plus `share` of what training changed in it, as products, at the plan's rank.

    A site of a lower rank changed only the first components; the others stay as they are.
    """
    if share == 0:
        return start
    if share == 1 and trained.max_rank == start.max_rank:
        return trained
    return COMBINE["svd"](plan, start, [trained], [share], None)[0]


def _card(plan: Plan, adapter: Adapter, site: str, start: GlobalFolder, share: float) -> str:
    return card.card(
        plan.base,
        adapter,
        f"Private adapter of site {site}",
        f"**It does not leave the hospital.** Made by fedmed from the global adapter of round {start.record.round} and "
        f"a share of {share:g} of a training on this site's own examples.",
    )
