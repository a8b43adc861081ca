"""Tables on privacy: what a ledger says was spent, and what contributions promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.records.audit import Audit
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.privacy import NO_GUARANTEE
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Part, Table, Text

if TYPE_CHECKING:
    from fedmed_cli.trust.ledger import Spent


def spent_parts(spent: Sequence[Spent], ledger: Path) -> list[Part]:
    """What was spent on each set of training examples, and what that means."""
    if not spent:
        return [Text(f"{ledger}: no training on records of patients was entered yet.")]
    columns = ["records", "site", "unit", "units", "trainings", "epsilon", "delta", "left", "trainings left"]
    rows = [
        [
            short(one.data),
            one.site,
            one.unit,
            f"{one.num_units:,}",
            f"{one.trainings:,}",
            _epsilon(one.epsilon),
            f"{one.delta:.2g}",
            "" if one.left is None else f"{one.left:.3g}",
            "" if one.more is None else f"{one.more:,}",
        ]
        for one in spent
    ]
    parts: list[Part] = [Table(f"Spent according to {ledger}", columns, rows, frozenset({1, 2}))]
    if without := sum(one.without_guarantee for one in spent):
        parts.append(Text(f"{without:,} trainings were without differential privacy. {NO_GUARANTEE}", "note"))
    return parts


def promises_table(contributions: Mapping[str, Contribution], round_number: int) -> list[Part]:
    """What each site's contribution to a round promises; empty where none promises anything."""
    if not any(record.privacy for record in contributions.values()):
        return []
    columns = ["site", "unit", "epsilon", "with earlier trainings", "delta", "noise", "sampling rate", "steps"]
    rows = []
    for site, record in contributions.items():
        one = record.privacy
        if one is None:
            rows.append([site, "", "no guarantee", "", "", "", "", ""])
            continue
        how = one.mechanism
        rows.append(
            [
                site,
                one.unit,
                _epsilon(one.epsilon),
                _epsilon(one.total_epsilon),
                f"{one.delta:.2g}",
                f"{how.noise_multiplier:.3g}",
                f"{how.sampling_rate:.3g}",
                f"{how.steps:,}",
            ]
        )
    return [
        Table(f"Differential privacy of round {round_number}, as the sites state it", columns, rows, frozenset({1}))
    ]


def audit_parts(record: Audit) -> list[Part]:
    """What an audit found, beside what was promised, in a sentence that needs no statistics."""
    one = record.membership
    rows = [
        ["AUC of membership", _share(one.auc), "0.5: guessing, 1: always right"],
        [f"found at a {one.fpr:.0%} false-alarm rate", _share(one.tpr), f"{one.fpr:g}: guessing"],
    ]
    if (found := record.canaries) is not None:
        rows += [
            ["epsilon, at least (95 % sure)", f"{found.epsilon_low:.2f}", f"promised: {_promised(record)}"],
            ["canaries found", f"{found.found} of {found.num_included}", f"{found.num_canaries} made"],
            ["exposure of canaries, bits", f"{found.exposure:.2f}", "about 1.4: guessing"],
        ]
    columns = ["what an attacker would find", "value", "to compare with"]
    title = f"Audit of site {record.site}, round {record.round}"
    parts: list[Part] = [Table(title, columns, rows, frozenset({2})), Text(_verdict(record))]
    if found is None:
        parts.append(Text("No canaries were trained on, so epsilon is not bounded from below.", "note"))
    if record.epsilon is None:
        parts.append(Text(NO_GUARANTEE, "note"))
    return [*parts, *numbers.few_groups(one.num_groups)]


def _verdict(record: Audit) -> str:
    auc, text = record.membership.auc, "whether a given record was among the training examples"
    if auc.low <= 0.5:
        return f"Changes in loss under this adapter do not tell {text}; another attack might."
    right = f"they pick the right one in {auc.mean:.0%} of pairs of a training example and another one"
    return f"Anyone with this adapter and a record can tell better than by guessing {text}: {right}."


def _share(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _promised(record: Audit) -> str:
    return "nothing" if record.epsilon is None else f"at most {record.epsilon:.3g}"


def _epsilon(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3g}"
