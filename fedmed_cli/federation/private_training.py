"""What a site's training costs in privacy: units, noise, and the entry in the hospital's ledger."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from fedmed_cli.data.examples import Example
from fedmed_cli.data.same_text import text_key
from fedmed_cli.data.site_data import SiteData
from fedmed_cli.errors import InputError
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.privacy import LARGEST_DELTA, LedgerEntry, Mechanism, Privacy, UnitOfPrivacy
from fedmed_cli.training import accounting
from fedmed_cli.training.options import PrivacyOptions
from fedmed_cli.trust.ledger import MOST_MORE, Ledger, Spent, share_records, sketch
from fedmed_cli.workspace import utc_now


@dataclass(frozen=True)
class PrivateRun:
    """A training by DP-SGD, before it runs: how it is done, for which unit, and at which delta it is counted."""

    mechanism: Mechanism
    max_grad_norm: float
    unit: UnitOfPrivacy
    delta: float


def plan_run(
    options: PrivacyOptions, num_units: int, unit: UnitOfPrivacy, units_per_step: int, num_steps: int
) -> PrivateRun:
    """The noise for the epsilon that was asked for, or the one that was given.

    Delta is by default a tenth of a unit's share, and at most 1e-5. InputError where a step would take more units than
    there are.
    """
    if units_per_step > num_units:
        raise InputError(
            f"a step of {units_per_step} {unit}s is asked for, but the site has {num_units}",
            hint="take a smaller --per-device-train-batch-size or --gradient-accumulation-steps",
        )
    rate = units_per_step / num_units
    delta = options.delta if options.delta is not None else default_delta(num_units)
    noise = options.noise_multiplier
    if noise is None:
        assert options.epsilon is not None
        noise = accounting.noise_for(options.epsilon, delta, rate, num_steps)
    return PrivateRun(Mechanism(rate, noise, num_steps), options.max_grad_norm, unit, delta)


@dataclass(frozen=True)
class Account:
    """The account of a site's training examples: what was spent on them, and what may be.

    `limit` is the least of the hospital's budget and the plan's; `run` None is a training without DP-SGD.
    """

    ledger: Ledger
    site: str
    plan: str
    round: int
    data: str
    sketch: tuple[str, ...]
    num_units: int
    unit: UnitOfPrivacy
    run: PrivateRun | None
    limit: float | None
    group_by: str | None = None

    def check(self) -> None:
        """InputError where this training would spend more than may be; nothing is written."""
        with self.ledger.lock():
            self._total(self.ledger.read())

    def enter(self, adapter: str) -> Privacy | None:
        """Write the training into the ledger, before its adapter can leave; returns the statement for its record.

        One that was entered and then killed, before its adapter was filed, is not entered again.
        """
        mechanism = self.run.mechanism if self.run else None
        this = (self.site, self.plan, self.round, adapter)
        with self.ledger.lock():
            entries = self.ledger.read()
            others = [one for one in entries if (one.site, one.plan, one.round, one.adapter) != this]
            total = self._total(others)
            if len(others) == len(entries):
                self.ledger.append(
                    lambda previous: LedgerEntry(
                        site=self.site,
                        plan=self.plan,
                        round=self.round,
                        data=self.data,
                        sketch=self.sketch,
                        num_units=self.num_units,
                        unit=self.unit,
                        mechanism=mechanism,
                        adapter=adapter,
                        created=utc_now(),
                        previous=previous,
                        group_by=self.group_by,
                    )
                )
        if self.run is None:
            return None
        return Privacy(
            epsilon=accounting.epsilon([self.run.mechanism], self.run.delta),
            total_epsilon=total,
            delta=self.run.delta,
            unit=self.unit,
            max_grad_norm=self.run.max_grad_norm,
            mechanism=self.run.mechanism,
            accountant=accounting.accountant_name(),
        )

    def _total(self, entries: Sequence[LedgerEntry]) -> float | None:
        """The epsilon of all trainings on these records, this one included; None where there is none."""
        earlier = [entry for entry in entries if share_records(entry, self.data, self.sketch)]
        if self.run is None and self.limit is None:
            return None
        if self.run is None:
            raise InputError(
                f"site {self.site}: at most epsilon {self.limit:g} may be spent, and this training has no guarantee",
                hint="give --dp-epsilon or --dp-noise-multiplier",
            )
        total = total_epsilon(earlier, self.unit, self.group_by, self.run.delta, self.run)
        if self.limit is None:
            return total
        if total is None:
            raise InputError(
                f"site {self.site}: at most epsilon {self.limit:g} may be spent, but these records were trained on "
                "before without a guarantee for this unit",
                hint="'fedmed privacy' shows when",
            )
        if total > self.limit:
            spent = total_epsilon(earlier, self.unit, self.group_by, self.run.delta) or 0.0
            raise InputError(
                f"site {self.site}: this training would bring epsilon to {total:.3g}, above the budget of "
                f"{self.limit:g}; {spent:.3g} is spent",
                hint="train with more noise or fewer steps, or not at all",
            )
        return total


def open_account(
    ledger: Ledger,
    plan: Plan,
    site: str,
    round_number: int,
    data: SiteData,
    num_units: int,
    run: PrivateRun | None,
    budget: float | None,
) -> Account:
    """The account that a training is entered into. InputError where its delta is too large for the plan."""
    digest, sketch = describe_data(data.train)
    if plan.privacy.max_epsilon is not None and run is not None and run.delta > LARGEST_DELTA:
        raise InputError(f"--dp-delta: where the plan limits epsilon, expected at most {LARGEST_DELTA:g}")
    limit = min((limit for limit in (budget, plan.privacy.max_epsilon) if limit is not None), default=None)
    unit: UnitOfPrivacy = "group" if data.group_by else "example"
    return Account(ledger, site, plan.digest, round_number, digest, sketch, num_units, unit, run, limit, data.group_by)


def total_epsilon(
    entries: Sequence[LedgerEntry],
    unit: UnitOfPrivacy,
    group_by: str | None,
    delta: float,
    run: PrivateRun | None = None,
) -> float | None:
    """The epsilon of these trainings, and of `run`, together; None where one of them promises nothing for this unit.

    What holds for a group holds for each of its examples, but not the other way round, and nothing for the groups of
    another column: a patient has many visits.
    """
    mechanisms = [run.mechanism] if run else []
    for entry in entries:
        if entry.mechanism is None or (unit == "group" and (entry.unit, entry.group_by) != (unit, group_by)):
            return None
        mechanisms.append(entry.mechanism)
    return accounting.epsilon(mechanisms, delta) if mechanisms else 0.0


def default_delta(num_units: int) -> float:
    """A tenth of one unit's share, at most 1e-5."""
    return min(LARGEST_DELTA, 0.1 / num_units)


def list_spent(entries: Sequence[LedgerEntry], budget: float | None, delta: float | None = None) -> list[Spent]:
    """One item for each set of training examples in the ledger, the newest last."""
    newest = {entry.data: entry for entry in entries}
    return [_spent(entry, entries, budget, delta or default_delta(entry.num_units)) for entry in newest.values()]


def _spent(newest: LedgerEntry, entries: Sequence[LedgerEntry], budget: float | None, delta: float) -> Spent:
    shared = [entry for entry in entries if share_records(entry, newest.data, newest.sketch)]
    epsilon = total_epsilon(shared, newest.unit, newest.group_by, delta)
    left = more = None
    if budget is not None and epsilon is not None:
        left = max(0.0, budget - epsilon)
        more = bisect.bisect_right(
            range(1, MOST_MORE + 1),
            budget,
            key=lambda n: total_epsilon([*shared, *[newest] * n], newest.unit, newest.group_by, delta) or 0.0,
        )
    return Spent(
        newest.site,
        newest.data,
        newest.unit,
        newest.num_units,
        len(shared),
        sum(entry.mechanism is None for entry in shared),
        newest.created,
        delta,
        epsilon,
        left,
        more,
    )


def describe_data(rows: Sequence[Example]) -> tuple[str, tuple[str, ...]]:
    """The digest of a set of training examples, whatever its file is called and its order, and its sketch."""
    keys = sorted(text_key(row.question, row.answer) for row in rows)
    return sha256_json([f"{key:016x}" for key in keys]), sketch(keys)
