"""The report on the federation itself: the few facts that a reader wants first, its plan, and how far numbers carry."""

from __future__ import annotations

from collections.abc import Sequence

from fedmed_cli.records.codec import encode
from fedmed_cli.records.lora import described
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Cell, Pairs, Part, Section, Text
from fedmed_cli.reporting.tables.comparison import verdict
from fedmed_cli.reporting.workspace_records import WorkspaceRecords
from fedmed_cli.text import number_of_bytes
from fedmed_cli.trust.verify import Verification

LIMITS = (
    "Research evaluation, not for clinical use. No number here says that an answer is medically right.",
    "A lower loss means that the model finds the reference answers more likely. It is not a measure of truth, of harm "
    "or of use to a patient.",
    "Intervals are 95 % bootstrap intervals over groups of examples. They cover chance in which examples were measured "
    "on, not a different choice of seed, data or hospital; several side by side are not corrected for their number.",
    "Numbers used to choose the weights (the coordinator's examination, hospitals' scores) are shown as reasons, not "
    "as results. Results are the comparison on held-out examples, which nobody trained on or chose weights with.",
    "What sites say of themselves (examples, tokens, training and validation losses) are their own claims.",
    "An adapter can hold traces of what it was trained on. A backdoor that keeps within honest norms, sites that "
    "collude, and what a curious reader infers from an adapter are not defended against.",
)
# The training options that the plan's section words; any other is shown as it is.
_SHOWN = frozenset(
    "fedprox_mu learning_rate lr_scheduler_rounds lr_scheduler_type max_grad_norm max_length max_steps seed "
    "warmup_steps weight_decay".split()
)


def overview_section(records: WorkspaceRecords, verification: Verification | None) -> Section:
    """The few facts that a reader wants first, then all that is missing."""
    plan = records.plan
    rows: list[tuple[str, str | Cell]] = [
        ("Base model", plan.base.name),
        ("Sites", f"{len(plan.sites.names)} ({numbers.joined(_first_names(plan.sites.names))})"),
        ("Rounds aggregated", str(sum(one.aggregate is not None for one in records.rounds))),
    ]
    if records.split is not None:
        examples = numbers.count(records.split.num_examples, "example")
        rows.append(("Data", f"{examples}, divided on one machine for a trial"))
    archived = [c for one in records.rounds for c in one.contributions.values()]
    if sent := archived or list(records.waiting.values()):
        rows.append(("A site sends in a round", numbers.saved_bytes(sent[-1].adapter_bytes, sent[-1].base_bytes)))
    last = records.rounds[-1].aggregate if records.rounds else None
    if last is not None:
        verdicts = [f"{name} {one.verdict}" for name, one in last.sites.items()]
        rows.append((f"Verdicts of round {last.round}", ", ".join(_first_names(verdicts))))
    rows.append(("Verified", _verified_text(verification)))
    sentences = [verdict(records.comparison)]
    if records.comparison is None:
        by_site = {site: verdict(comparison) for site, comparison in records.site_comparisons.items()}
        sentences = [f"Site {site}, on its own test examples: {text}" for site, text in by_site.items() if text]
    parts: list[Part] = [Text(sentence, "verdict") for sentence in sentences if sentence]
    if not parts:
        why = "Nothing here says yet whether federating helped: no global adapter has been compared with the base."
        parts.append(Text(why, "missing"))
    parts.append(Pairs(rows))
    parts += [Text(f"Left out: {problem}.", "fault") for problem in records.problems]
    parts += [Text(f"{note}.", "note") for note in records.notes]
    return Section("overview", "At a glance", parts)


def _first_names(names: Sequence[str], most: int = 12) -> list[str]:
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]


def _verified_text(result: Verification | None) -> str:
    if result is None:
        return "no: this report repeats what the records say; 'fedmed verify' checks them"
    if result.faults:
        return f"no: {numbers.count(len(result.faults), 'fault')} found, see Lineage"
    return f"yes: {numbers.count(len(result.checked), 'adapter')} checked when this report was made, see Lineage"


def plan_section(records: WorkspaceRecords) -> Section:
    """What all sites agreed on."""
    plan = records.plan
    training, lora = plan.training, plan.lora
    ranks = ", ".join(f"{site} {rank}" for site, rank in plan.sites.ranks.items())
    rows: list[tuple[str, str | Cell]] = [
        ("Base model", plan.base.name + (f" at {plan.base.revision}" if plan.base.revision else "")),
        ("Bytes of its weights", number_of_bytes(plan.base.num_bytes)),
        ("Base fingerprint", plan.base.fingerprint),
        ("Adapter", f"LoRA, {described(lora)}; on {', '.join(lora.targets)}"),
        ("Trained parameters", f"{plan.num_parameters:,} in {len(plan.modules):,} modules"),
        ("Training", f"{training.max_steps:,} steps per round, learning rate {training.learning_rate:g}"),
        (
            "Schedule",
            f"{training.lr_scheduler_type} over {numbers.count(training.lr_scheduler_rounds, 'round')}, "
            f"{training.warmup_steps} warm-up steps, weight decay "
            f"{training.weight_decay:g}, gradients clipped at {training.max_grad_norm:g}",
        ),
        *([("FedProx", f"mu = {training.fedprox_mu:g}")] if training.fedprox_mu else []),
        ("Longest example", f"{training.max_length:,} tokens"),
        ("Seed", str(training.seed)),
        *((f"training.{name}", str(value)) for name, value in encode(training).items() if name not in _SHOWN),
        ("System text", plan.prompt.system or "(none)"),
        ("User text", plan.prompt.user),
        ("Sites", ", ".join(plan.sites.names) + f"; a round needs {plan.sites.min_sites}"),
        *([("Lower ranks", ranks)] if ranks else []),
        ("Pinned keys", ", ".join(plan.sites.keys) or "none: nothing has to be signed"),
        ("Plan digest", plan.digest),
    ]
    note = Text("Device and batch size are up to each site, and are in its record.")
    return Section("plan", "The federation", [Pairs(rows, frozenset({"Base fingerprint", "Plan digest"})), note])


def limits_section() -> Section:
    """How far the numbers carry."""
    return Section("limits", "Limits", [Text(limit) for limit in LIMITS])
