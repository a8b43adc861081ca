"""A hospital's scores of all contributions on its own validation examples: numbers leave, no example does."""

from __future__ import annotations

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.bundle import is_bundle
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.data import site_data
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.events import Events
from fedmed_cli.intervals import paired_interval, standard_error
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores, SiteScore
from fedmed_cli.workspace import Workspace


def score(
    workspace: Workspace, plan: Plan, lm: LanguageModel, name: str, max_eval_samples: int, events: Events
) -> Scores:
    """Measure every contribution in `adapters/` against the adapter the round started from."""
    data = site_data.workspace_data(workspace, name)
    if not data.validation:
        raise InputError(f"site {name} has no validation examples to score with")
    what = f"validation examples of site {name} to score with"
    items = measuring.choose(lm, plan, data.validation, max_eval_samples, data.group_by, what, events.say)
    round_number = workspace.newest_round() + 1
    parent = archive.starting_adapter(workspace, plan, round_number)
    start = measuring.measure_cached(workspace, plan, lm, parent, items, events.measured)
    gains = {}
    policy = SignaturePolicy(say=events.say)
    for path in sorted(workspace.adapters.glob("*")):
        if (path.is_dir() or is_bundle(path)) and not path.name.startswith("."):
            adapter = gate.read_contribution(path, plan, (round_number, parent.digest), policy=policy).adapter
            losses = measuring.measure_cached(workspace, plan, lm, adapter, items, events.measured)
            gain = paired_interval(start, losses, items.groups).mean
            gains[adapter.digest] = SiteScore(gain, standard_error(start, losses, items.groups))
    if not gains:
        raise InputError("there is no contribution in adapters/ to score")
    return Scores(
        site=name,
        round=round_number,
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=parent.digest,
        examples_digest=items.digest,
        num_examples=len(items.examples),
        num_groups=len(set(items.groups)),
        gains=gains,
        run=measuring.environment(lm),
    )
