"""How `inspect-adapter` shows what it found."""

from __future__ import annotations

from fedmed_cli.adapters.inspect import AdapterFacts
from fedmed_cli.adapters.low_rank import Relation
from fedmed_cli.cli.screen import Table, number_of_bytes
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.lora import described
from fedmed_cli.records.plan import Plan


def facts_table(facts: AdapterFacts, plan: Plan | None) -> Table:
    adapter, folder = facts.adapter, facts.folder
    size = number_of_bytes(folder.num_bytes)
    if facts.base_bytes is not None and facts.reduction is not None:
        size += f" ({100 * facts.reduction:.2f} % less than {number_of_bytes(facts.base_bytes)} of base model)"
    rows = [
        ["digest", adapter.digest],
        ["base model", adapter.base_name or "not named"],
        ["LoRA", described(adapter)],
        ["targets", f"{', '.join(adapter.targets)} ({len(facts.modules)} modules)"],
        ["parameters", f"{adapter.num_parameters:,}"],
        ["bytes", size],
        ["norm of s·B·A", f"{facts.norm:.4f}, effective rank {facts.effective_rank:.2f} (mean over modules)"],
    ]
    record = folder.record
    if isinstance(record, Contribution):
        rows += [
            ["contribution", f"site {record.site}, round {record.round}, {record.max_steps} steps"],
            ["claims", f"{record.num_examples:,} examples, {record.num_tokens:,} answer tokens"],
        ]
    if isinstance(record, Aggregate):
        weights = ", ".join(f"{name} {site.weight:.3f}" for name, site in record.sites.items())
        rows += [
            ["global adapter", f"round {record.round}, {record.method}, weights {weights}"],
            ["made of", ", ".join(f"{name} {site.adapter[:12]}" for name, site in record.sites.items())],
        ]
    if record is None:
        rows.append(["record", "none: no provenance record"])
    else:
        rows += [["started from", record.parent], ["plan", record.plan]]
    rows.append(["signature", _signature(facts, plan)])
    return Table(str(folder.path), ("", ""), rows, frozenset({0, 1}))


def _signature(facts: AdapterFacts, plan: Plan | None) -> str:
    folder = facts.folder
    if folder.signer is None or folder.sender is None:
        return "none"
    from fedmed_cli.adapters.signatures import fingerprint

    pinned = plan is not None and plan.sites.keys.get(folder.sender) == folder.signer
    known = f"the plan's key for {folder.sender}" if pinned else "a key that the plan does not pin for it"
    return f"{fingerprint(folder.signer)}, {known}"


def modules_table(facts: AdapterFacts, everything: bool) -> Table:
    order = sorted(facts.modules, key=lambda module: -facts.modules[module].norm)
    shown = list(facts.modules) if everything else order[:5]
    rows = []
    for module in shown:
        one = facts.modules[module]
        spectrum = " ".join(f"{value:.3f}" for value in one.singular_values[:8])
        rows.append(
            [module, f"{one.size_out} x {one.size_in}", f"{one.norm:.4f}", f"{one.effective_rank:.2f}", spectrum]
        )
    title = "All modules" if everything else f"The {len(shown)} largest of {len(order)} modules (--modules for all)"
    return Table(title, ("module", "shape", "norm", "effective rank", "singular values"), rows, frozenset({0, 4}))


def relation_table(relation: Relation) -> Table:
    rows = [
        ["cosine", f"{relation.cosine:.4f}"],
        ["norm of the difference", f"{relation.difference_norm:.4f}"],
        ["relative to the larger", f"{100 * relation.relative_difference:.2f} %"],
    ]
    return Table("The two adapters", ("", ""), rows)
