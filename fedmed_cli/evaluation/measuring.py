"""Scores of adapters on examples: losses per example, measured once and remembered by digest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation.state import Evaluator
from fedmed_cli.data.examples import Example, home_site, set_digest
from fedmed_cli.errors import InputError
from fedmed_cli.events import Progress, Say
from fedmed_cli.intervals import Losses
from fedmed_cli.models.fast_path import ATTENTION, LINEAR, fast_path
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.models.prompts import Encoded, encode
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.measures import Run
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import write_file

BATCH_TOKENS = 2048
BATCH_EXAMPLES = 16
OPERATIONS = (ATTENTION, LINEAR)  # fedmed's own that measuring uses where a model takes them; others are for training


@dataclass(frozen=True)
class EvaluationSet:
    """Examples ready to be measured. `groups` are what intervals resample."""

    examples: list[Example]
    encoded: list[Encoded]
    groups: list[str]
    digest: str
    num_skipped: int
    num_truncated: int


def sample(
    examples: Sequence[Example],
    limit: int,
    group_by: str | None = None,
    stratum: Callable[[Example], str] = lambda example: "",
) -> list[Example]:
    """At most `limit` examples, always the same ones, spread over the values of `stratum` in proportion.

    Within a stratum each group gives one example before any gives a second one, because what an interval is
    worth goes by the number of groups. The order goes by digest: as good as random and the same every time.
    """
    if len(examples) <= limit:
        return list(examples)
    strata: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: sha256_json([example.text_digest, "choose"])):
        strata.setdefault(stratum(example), []).append(example)
    exact = {name: limit * len(members) / len(examples) for name, members in strata.items()}
    counts = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: (counts[name] - exact[name], name))[: limit - sum(counts.values())]:
        counts[name] += 1
    return [example for name in sorted(strata) for example in _take_turns(strata[name], group_by)[: counts[name]]]


def _take_turns(examples: Sequence[Example], group_by: str | None) -> list[Example]:
    """The first example of each group, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for example in examples:
        group = example.group(group_by)
        turns.append(seen[group])
        seen[group] += 1
    return [examples[i] for i in sorted(range(len(examples)), key=lambda i: turns[i])]


def prepare(lm: LanguageModel, plan: Plan, examples: Sequence[Example], group_by: str | None) -> EvaluationSet:
    """Encode examples for measuring. InputError where none has room for an answer token."""
    fitting, encoded = [], []
    for example in examples:
        tokens = encode(example, plan.prompt, lm.tokenizer, plan.training.max_length)
        if tokens is not None:
            fitting.append(example)
            encoded.append(tokens)
    if not fitting:
        raise InputError(f"none of {len(examples)} examples fits into max_length {plan.training.max_length}")
    groups = [example.group(group_by) for example in fitting]
    truncated = sum(tokens.truncated for tokens in encoded)
    return EvaluationSet(fitting, encoded, groups, set_digest(fitting), len(examples) - len(fitting), truncated)


def choose(
    lm: LanguageModel,
    plan: Plan,
    examples: Sequence[Example],
    limit: int,
    group_by: str | None,
    what: str,
    say: Say,
    stratum: Callable[[Example], str] = lambda example: "",
) -> EvaluationSet:
    """A `sample` of the examples, ready to be measured; what is left out is said. `what` they are stands after "of"."""
    chosen = sample(examples, limit, group_by, stratum)
    if len(chosen) < len(examples):
        say(f"{len(chosen)} of {len(examples)} {what}")
    items = prepare(lm, plan, chosen, group_by)
    if items.num_skipped:
        say(f"skipped {items.num_skipped} of {len(chosen)} {what}: the question alone fills max_length")
    return items


def measure(
    lm: LanguageModel, adapter: Adapter | None, encoded: Sequence[Encoded], progress: Progress | None = None
) -> Losses:
    """Losses per example of the base with `adapter` (None: the plain base), batched by length."""
    lm.use(adapter)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    nll = np.zeros(len(encoded))
    done = 0
    with fast_path(lm, *OPERATIONS), torch.inference_mode():
        while done < len(order):
            batch = order[done : done + BATCH_EXAMPLES]
            while len(batch) > 1 and len(batch) * len(encoded[batch[-1]].ids) > BATCH_TOKENS:
                batch.pop()
            nll[batch] = nll_per_example(lm, [encoded[index] for index in batch]).double().cpu().numpy()
            done += len(batch)
            if progress:
                progress(done, len(order))
    return Losses(nll, np.array([tokens.num_supervised for tokens in encoded]))


def environment(lm: LanguageModel) -> Run:
    """Versions, device and the operations that measuring used, for a record's `run` object, with the time."""
    used = [name for name in lm.fast_path.used if name in OPERATIONS]
    return lm.environment() | {"operations": ", ".join(used) or "none", "created": utc_now()}


def measure_cached(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapter: Adapter | None,
    items: EvaluationSet,
    progress: Progress | None = None,
) -> Losses:
    """`measure`, kept in `.fedmed/measurements/` by adapter, base, prompt, set and arithmetic."""
    return compute_cached(
        workspace, plan, lm, adapter, items.digest, lambda adapter: measure(lm, adapter, items.encoded, progress)
    )


def compute_cached(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapter: Adapter | None,
    set_digest: str,
    compute: Callable[[Adapter | None], Losses],
) -> Losses:
    """What `compute` measures of an adapter on the set of this digest, or what it once did."""
    if adapter is not None and not any(b.any() for _, b in adapter.factors.values()):
        adapter = None  # B = 0 adds nothing: it is the base
    key = {
        "adapter": adapter.digest if adapter else "base",
        "base": plan.base.fingerprint,
        "prompt": [plan.prompt.system, plan.prompt.user, plan.training.max_length],
        "set": set_digest,
        "arithmetic": [lm.device.type, str(lm.dtype), *(["nf4"] if lm.quantized else [])],
    }
    path = workspace.private / "measurements" / f"{sha256_json(key)}.json"
    if path.exists():
        value = json.loads(path.read_bytes())
        return Losses(np.array(value["nll"]), np.array(value["num_tokens"]))
    losses = compute(adapter)
    value = {"key": key, "nll": losses.nll.tolist(), "num_tokens": losses.num_tokens.tolist()}
    write_file(path, json.dumps(value).encode())
    return losses


def evaluator(
    workspace: Workspace, plan: Plan, lm: LanguageModel, items: EvaluationSet, progress: Progress | None = None
) -> Evaluator:
    """The coordinator's measuring of adapters on `items`, remembered in the workspace."""
    return Evaluator(
        digest=items.digest,
        groups=items.groups,
        example_sites=[home_site(example) for example in items.examples],
        losses=lambda adapter: measure_cached(workspace, plan, lm, adapter, items, progress),
    )
