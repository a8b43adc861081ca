"""The report on the federation itself: its plan, what was exchanged, what came from what, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from fedmed_cli.records.codec import encode
from fedmed_cli.records.digests import short
from fedmed_cli.records.lora import described
from fedmed_cli.report import wording
from fedmed_cli.report.page import Cell, Grid, Pairs, Part, Section, Text
from fedmed_cli.report.workspace_facts import Checks, Facts, RoundFacts
from fedmed_cli.text import number_of_bytes

LIMITS = (
    "Research evaluation, not for clinical use. No number here says that an answer is medically right.",
    "A lower loss means that the model finds the reference answers more likely. It is not a measure of truth, of harm "
    "or of use to a patient.",
    "Intervals are 95 % bootstrap intervals over groups of examples. They cover chance in which examples were measured "
    "on, not a different choice of seed, data or hospital; several side by side are not corrected for their number.",
    "Numbers that chose the weights (the coordinator's examination, hospitals' scores) are shown as reasons and are no "
    "result. Results are the comparison on held-out examples, which nobody trained on or chose weights with.",
    "What sites say of themselves (examples, tokens, training and validation losses) is their own claim.",
    "An adapter can hold traces of what it was trained on. A backdoor that keeps within honest norms, sites that "
    "collude, and what a curious reader infers from an adapter are not defended against.",
)
# The training options that the plan's section words; any other is shown as it is.
_SHOWN = frozenset(
    "fedprox_mu learning_rate lr_scheduler_rounds lr_scheduler_type max_grad_norm max_length max_steps seed "
    "warmup_steps weight_decay".split()
)


def overview_section(facts: Facts, checks: Checks | None) -> Section:
    """The few facts that a reader wants first, then all that is missing."""
    last = facts.last
    done = [one for one in facts.rounds if one.aggregate is not None]
    rows: list[tuple[str, str]] = [
        ("Base model", facts.plan.base.name),
        ("Sites", f"{len(facts.plan.sites.names)} ({wording.joined(_first(facts.plan.sites.names))})"),
        ("Rounds aggregated", str(len(done))),
    ]
    if facts.split is not None:
        rows.append(
            ("Data", f"{wording.count(facts.split.num_examples, 'example')}, divided on one machine for a trial")
        )
    records = [c for one in facts.rounds for c in one.contributions.values()] or list(facts.waiting.values())
    if records:
        newest = records[-1]
        share = newest.adapter_bytes / newest.base_bytes if newest.base_bytes else 0.0
        rows.append(
            (
                "A site sends in a round",
                f"{number_of_bytes(newest.adapter_bytes)} instead of {number_of_bytes(newest.base_bytes)} of model "
                f"({wording.percent(share)})",
            )
        )
    if last is not None and last.aggregate is not None:
        verdicts = [f"{name} {one.verdict}" for name, one in last.aggregate.sites.items()]
        rows.append((f"Verdicts of round {last.number}", ", ".join(_first(verdicts))))
    rows.append(("Verified", _verified(checks)))
    found = [wording.verdict(facts.comparison)]
    if facts.comparison is None:
        said = {site: wording.verdict(record) for site, record in facts.site_comparisons.items()}
        found = [f"Site {site}, on its own test examples: {sentence}" for site, sentence in said.items() if sentence]
    parts: list[Part] = [Text(sentence, "verdict") for sentence in found if sentence]
    if not parts:
        why = "Nothing here says yet whether federating helped: no global adapter has been compared with the base."
        parts.append(Text(why, "missing"))
    parts.append(Pairs(tuple(rows)))
    parts += [Text(f"Could not be read and is left out: {problem}.", "fault") for problem in facts.problems]
    return Section("overview", "At a glance", parts)


def _first(names: Sequence[str], most: int = 12) -> list[str]:
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]


def _verified(checks: Checks | None) -> str:
    if checks is None:
        return "no: this report repeats what the records say; 'fedmed verify' checks them"
    if checks.faults:
        return f"no: {wording.count(len(checks.faults), 'fault')} found, see Lineage"
    return f"yes: {wording.count(len(checks.checked), 'adapter')} checked when this report was made, see Lineage"


def plan_section(facts: Facts) -> Section:
    """What all sites agreed on."""
    plan = facts.plan
    training, lora = plan.training, plan.lora
    ranks = ", ".join(f"{site} {rank}" for site, rank in plan.sites.ranks.items())
    rows = [
        ("Base model", plan.base.name + (f" at {plan.base.revision}" if plan.base.revision else "")),
        ("Bytes of its weights", number_of_bytes(plan.base.num_bytes)),
        ("Base fingerprint", plan.base.fingerprint),
        ("Adapter", f"LoRA, {described(lora)}; on {', '.join(lora.targets)}"),
        ("Trained parameters", f"{plan.num_parameters:,} in {len(plan.modules):,} modules"),
        ("Training", f"{training.max_steps:,} steps a round, learning rate {training.learning_rate:g}"),
        (
            "Schedule",
            f"{training.lr_scheduler_type} over {wording.count(training.lr_scheduler_rounds, 'round')}, "
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
    note = Text("Device and batch size are free at each site and stand in its record.")
    return Section("plan", "The federation", [Pairs(tuple(rows), frozenset({"Base fingerprint", "Plan digest"})), note])


def bytes_section(facts: Facts) -> Section:
    """What travelled, and what would have without adapters."""
    base = facts.plan.base.num_bytes
    rows: list[list[str]] = []
    up = down = 0
    unknown: list[str] = []
    for one in facts.rounds:
        for site in sorted(one.contributions):
            size = one.files[site].folder_bytes
            up += size
            rows.append([f"{one.number}", f"{site} to the coordinator", f"{size:,}", _share(size, base)])
        if one.aggregate is None:
            continue
        sites = len(one.aggregate.sites)
        if absent := sorted(set(one.aggregate.sites) - set(one.contributions)):
            unknown.append(f"round {one.number}: {', '.join(absent)}")
        size = one.files["global"].folder_bytes
        down += size * sites
        rows.append([f"{one.number}", f"global, to each of {sites} sites", f"{size:,}", _share(size, base)])
    for site, record in facts.waiting.items():
        rows.append(
            [
                f"{record.round}",
                f"{site}, waiting in adapters/",
                f"{record.adapter_bytes:,}",
                _share(record.adapter_bytes, base),
            ]
        )
    title = "Bytes exchanged"
    if not rows:
        return Section("bytes", title, [Text("Nothing has been exchanged yet.", "missing")])
    transfers = sum(len(one.contributions) + (len(one.aggregate.sites) if one.aggregate else 0) for one in facts.rounds)
    parts: list[Part] = []
    if transfers:
        parts.append(
            Text(
                f"In all {number_of_bytes(up)} from the sites and {number_of_bytes(down)} back to them. The same "
                f"{wording.count(transfers, 'transfer')} of the whole model would be "
                f"{number_of_bytes(base * transfers)}: the adapters are {_share(up + down, base * transfers)} of that."
            )
        )
    parts.append(
        Grid("Folders with their records", ["round", "what", "bytes", "share of the model"], rows, frozenset({1}))
    )
    if unknown:
        parts.append(Text(f"Contributions that are not here are not counted ({'; '.join(unknown)}).", "missing"))
    return Section("bytes", title, parts)


def _share(size: int, base: int) -> str:
    return wording.percent(size / base) if base else ""


def lineage_section(facts: Facts, checks: Checks | None) -> Section:
    """Which adapter was made of which, by the digests that the records name."""
    parts: list[Part] = [_verification_text(checks)]
    if checks is not None:
        parts += [Text(f"Fault: {fault}.", "fault") for fault in checks.faults]
        if checks.notes:
            title = f"Not proved: {wording.count(len(checks.notes), 'note')}"
            unproved = [[what, why] for what, _, why in (note.partition(": ") for note in checks.notes)]
            parts.append(Grid(title, ["what", "why"], unproved, frozenset({1}), folded=len(unproved) > 3))
        if checks.checked:
            rows = [[one.path, str(one.round or ""), short(one.adapter), one.signature] for one in checks.checked]
            parts.append(Grid("What was checked", ["adapter", "round", "digest", "signed by"], rows, frozenset({2, 3})))
    rows_of_rounds: list[list[str | Cell]] = []
    digests: list[list[str]] = []
    before: RoundFacts | None = None
    for one in facts.rounds:
        record = one.aggregate
        if record is None:
            rows_of_rounds.append([str(one.number), Cell("no record of a global adapter", "gone"), "", "", ""])
        else:
            signed = ", ".join(record.signers) or "none"
            row: list[str | Cell] = [str(one.number), short(record.adapter), _start(one, before), _made_of(one), signed]
            rows_of_rounds.append(row)
            digests.append([f"round {one.number}, global", record.adapter])
            digests += [[f"round {one.number}, {site}", each.adapter] for site, each in record.sites.items()]
        before = one
    digests += [[f"waiting, {site}", record.adapter] for site, record in facts.waiting.items()]
    if rows_of_rounds:
        columns = ["round", "global adapter", "started from", "made of", "signed contributions"]
        parts.append(Grid("Rounds by the records alone", columns, rows_of_rounds, frozenset({1, 2, 3, 4})))
    else:
        parts.append(Text("There is no round here yet.", "missing"))
    if digests:
        parts.append(
            Grid("Whole digests of the adapters", ["adapter", "SHA-256"], digests, frozenset({1}), folded=True)
        )
    return Section("lineage", "Lineage", parts)


def _verification_text(checks: Checks | None) -> Text:
    if checks is None:
        return Text(
            "Not verified: what follows is what the records say, compared with each other. Whether the weights have "
            "these digests, whether signatures hold and whether a round computed again gives the same adapter is what "
            "'fedmed verify --recompute' checks; 'fedmed report --verify' puts its result here.",
            "note",
        )
    if checks.faults:
        return Text("Verified when this report was made, and it does not hold:", "fault")
    return Text(
        "Verified when this report was made: the gate, digests, pinned signatures and lineage hold for all that is "
        "listed as checked. Rounds were not computed again."
    )


def _start(one: RoundFacts, before: RoundFacts | None) -> str | Cell:
    """What a round started from, and whether the records before it agree."""
    record = one.aggregate
    assert record is not None
    if one.number == 1:
        return f"{short(record.parent)} (the plan's initial adapter, if it verifies)"
    if before is None or before.number != one.number - 1 or before.aggregate is None:
        return Cell(f"{short(record.parent)} (round {one.number - 1} is not here)", "gone")
    if record.parent != before.aggregate.adapter:
        return Cell(f"{short(record.parent)}, which is not round {before.number}", "rejected")
    if record.parent_record is None:
        return f"round {before.number} (its record is not named)"
    if record.parent_record != before.files["global"].sha256:
        return Cell(f"round {before.number}, but its record was changed since", "rejected")
    return f"round {before.number}"


def _made_of(one: RoundFacts) -> Cell:
    """The contributions by site: here and as the record names them, or not."""
    record = one.aggregate
    assert record is not None
    lines = []
    wrong = False
    for site, each in record.sites.items():
        if site not in one.contributions:
            lines.append(f"{site} {short(each.adapter)}: not here")
        elif one.files[site].sha256 != each.contribution:
            lines.append(f"{site} {short(each.adapter)}: its record here is another one")
            wrong = True
        else:
            lines.append(f"{site} {short(each.adapter)}")
    return Cell(lines=tuple(lines), kind="rejected" if wrong else "")


def limits_section() -> Section:
    """How far the numbers carry."""
    return Section("limits", "Limits", [Text(limit) for limit in LIMITS])
