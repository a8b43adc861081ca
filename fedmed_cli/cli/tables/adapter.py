"""How `inspect-adapter` shows what it found."""

from __future__ import annotations

from fedmed_cli.adapters.inspect import AdapterFacts
from fedmed_cli.adapters.low_rank import Relation
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.lora import described
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Plan
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Cell, Group, Pairs, Table


def facts_group(facts: AdapterFacts, plan: Plan | None) -> Group:
    """What an adapter is, what its record says, and who signed it."""
    adapter, folder = facts.adapter, facts.folder
    rows: list[tuple[str, str | Cell]] = [
        ("digest", adapter.digest),
        ("base model", adapter.base_name or "not named"),
        ("LoRA", described(adapter)),
        ("targets", f"{', '.join(adapter.targets)} ({len(facts.modules)} modules)"),
        ("parameters", f"{adapter.num_parameters:,}"),
        ("bytes", numbers.saved_bytes(folder.num_bytes, facts.base_bytes or 0)),
        ("norm of s·B·A", f"{facts.norm:.4f}, effective rank {facts.effective_rank:.2f} (mean over modules)"),
    ]
    record = folder.record
    if isinstance(record, Contribution):
        rows += [
            ("contribution", f"site {record.site}, round {record.round}, {record.num_steps} steps"),
            ("claims", f"{record.num_examples:,} examples, {record.num_tokens:,} answer tokens"),
        ]
    if isinstance(record, Aggregate):
        weights = ", ".join(f"{name} {site.weight:.3f}" for name, site in record.sites.items())
        rows += [
            ("global adapter", f"round {record.round}, {record.method}, weights {weights}"),
            ("made of", ", ".join(f"{name} {short(site.adapter)}" for name, site in record.sites.items())),
        ]
    if isinstance(record, Personal):
        rows += [
            ("private adapter", f"of site {record.site}: it does not leave the hospital"),
            ("mixed in", f"{record.share:g} of {record.num_steps} steps on its own examples"),
        ]
    if record is None:
        rows.append(("record", "none: no provenance record"))
    else:
        rows += [("started from", record.parent), ("plan", record.plan)]
    rows.append(("signature", _signature_text(facts, plan)))
    return Group(str(folder.path), [Pairs(rows)])


def _signature_text(facts: AdapterFacts, plan: Plan | None) -> str:
    folder = facts.folder
    if folder.signer is None or folder.sender is None:
        return "none"
    from fedmed_cli.records.signatures import fingerprint

    pinned = plan is not None and plan.sites.keys.get(folder.sender) == folder.signer
    known = f"the plan's key for {folder.sender}" if pinned else "a key that the plan does not pin for it"
    return f"{fingerprint(folder.signer)}, {known}"


def modules_table(facts: AdapterFacts, everything: bool) -> Table:
    """The modules with the largest norms, or all, with the first singular values of each."""
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
    return Table(title, ["module", "shape", "norm", "effective rank", "singular values"], rows, frozenset({4}))


def relation_group(relation: Relation) -> Group:
    """How two adapters differ."""
    rows: list[tuple[str, str | Cell]] = [
        ("cosine", f"{relation.cosine:.4f}"),
        ("norm of the difference", f"{relation.difference_norm:.4f}"),
        ("relative to the larger", f"{100 * relation.relative_difference:.2f} %"),
    ]
    return Group("The two adapters", [Pairs(rows)])
