"""The audit of a site's adapter inside the hospital, before it leaves."""

from __future__ import annotations

from fedmed_cli.adapters.folder import ContributionFolder
from fedmed_cli.data import examples
from fedmed_cli.data.canaries import Canaries, read_canaries, write_canaries
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.evaluation.audit import audit_canaries, membership, scores
from fedmed_cli.events import Events, Say
from fedmed_cli.models.canary_texts import sample_canaries
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.audit import Audit
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def site_canaries(workspace: Workspace, lm: LanguageModel, site: str, number: int, say: Say) -> Canaries:
    """The canaries of a site, with which of them its coins chose to train on; made where it has none yet."""
    canaries = read_canaries(workspace, site)
    if canaries is None:
        write_canaries(workspace, site, sample_canaries(lm, number))
        canaries = read_canaries(workspace, site)
        assert canaries is not None
    if len(canaries.examples) != number:
        say(f"keeps its {len(canaries.examples)} existing canaries: they stay the same in all rounds")
    say(f"trains on {len(canaries.trained_on)} canaries as well, for 'fedmed audit'")
    return canaries


def audit_site(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    site: str,
    folder: ContributionFolder,
    max_eval_samples: int,
    events: Events,
) -> Audit:
    """Measure what the site's contribution tells about its training examples, and about its canaries where it has some.

    Held-out examples are those of its test and validation sets, which no step was trained on. InputError where there
    are none.
    """
    data = workspace.site_data(site)
    group_by = workspace.group_column(site)
    rows = {
        name: examples.read_jsonl(data / f"{name}.jsonl") if examples.find_set(data / f"{name}.jsonl") else []
        for name in ("train", "validation", "test")
    }
    held_out = rows["test"] + rows["validation"]
    if not rows["train"] or not held_out:
        raise InputError(f"{workspace.relative(data)}: an audit needs training examples and held-out ones of the site")
    sets = [
        measuring.choose(lm, plan, part, max_eval_samples, group_by, f"{kind} examples", events.say)
        for kind, part in {"training": rows["train"], "held-out": held_out}.items()
    ]
    adapter, record = folder.adapter, folder.record
    canaries = read_canaries(workspace, site) if record.num_canaries else None
    if canaries is not None:
        sets.append(measuring.prepare(lm, plan, canaries.examples, None))
    encoded = [tokens for part in sets for tokens in part.encoded]
    losses = [measuring.measure(lm, which, encoded, events.measured) for which in (None, adapter)]
    values, start = [], 0
    for part in sets:
        at = range(start, start + len(part.encoded))
        values.append(scores(losses[0].take(at), losses[1].take(at)))
        start += len(part.encoded)
    delta = record.privacy.delta if record.privacy else 0.0
    return Audit(
        site=site,
        round=record.round,
        plan=plan.digest,
        adapter=record.adapter,
        epsilon=record.privacy.total_epsilon if record.privacy else None,
        delta=record.privacy.delta if record.privacy else None,
        membership=membership(values[0], sets[0].groups, values[1], sets[1].groups),
        canaries=audit_canaries(values[2], canaries.included, delta) if canaries is not None else None,
        run=measuring.environment(lm),
    )
