"""`fedmed train-local`: one hospital trains its adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.errors import UsageError

if TYPE_CHECKING:
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.federation.site import SiteResult
    from fedmed_cli.records.contribution import Contribution
    from fedmed_cli.workspace import Workspace


def train_local(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    examples: o.DataOptions = o.DataOptions(),
    global_adapter: Annotated[
        Path | None, typer.Option("--global", help="The coordinator's global adapter of the previous round.")
    ] = None,
    training: o.TrainingOptions = o.TrainingOptions(),
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=1, help="Validation examples to measure on.")
    ] = 100,
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    privacy_ledger: o.LedgerOption = None,
    waiting: o.WaitOptions = o.WaitOptions(),
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Train one hospital's adapter on its own examples and write adapters/SITE/, which may leave the hospital.

    It starts from the newest global adapter, or the plan's initial one. What must be the same at all sites is in
    the plan. With --wait it takes each round's global adapter from --mailbox and puts its contribution there.

    Example: fedmed train-local --site B --data records.jsonl
    """
    from fedmed_cli.cli.progress import step_events
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.cli.tables.round import contribution_parts
    from fedmed_cli.data.sources import Source
    from fedmed_cli.federation import steps
    from fedmed_cli.federation.plan import check_site
    from fedmed_cli.trust.keys import signer_for

    waiting.refuse_without_wait()
    if waiting.wait and (waiting.mailbox is None or global_adapter is not None):
        raise UsageError("--wait goes with --mailbox, from which it takes the global adapter, and without --global")
    screen, place = common.open()
    plan = place.read_plan()
    check_site(plan, site)
    columns, looked_for = examples.parsed()

    def find_source() -> Source | None:
        return Source(examples.data, columns) if examples.data else None

    find_source()  # what is wrong with it is said before anything is waited for
    signer = signer_for(site, plan, load_signer(screen, key, place.root))
    settings = training.site_settings(max_eval_samples)
    base = model.base_model(screen, training.load_in_4bit)

    def train() -> SiteResult:
        with step_events(screen, site) as events:
            result = steps.train_site(
                place,
                site,
                find_source(),  # anew in each round: a file may have grown
                looked_for,
                settings=settings,
                global_adapter=global_adapter,
                base=base,
                signer=signer,
                require_signatures=require_signatures,
                ledger=privacy_ledger,
                events=events,
            )
        if result.replaced:
            screen.say(f"the previous contribution is kept in {place.relative(result.replaced)}")
        return result

    if waiting.wait:
        _wait(screen, place, waiting, site, train, require_signatures)
        return
    result = train()
    end = f"wrote {result.path}: send this folder to the coordinator"
    screen.result(result.record.to_dict(), *contribution_parts(result.record), end)


def _wait(
    screen: Screen,
    place: Workspace,
    waiting: o.WaitOptions,
    site: str,
    train: Callable[[], SiteResult],
    require_signatures: bool,
) -> None:
    from fedmed_cli.cli.tables.round import contribution_parts
    from fedmed_cli.federation import unattended

    records: list[Contribution] = []

    def train_and_show() -> None:
        records.append(train().record)
        screen.show(*contribution_parts(records[-1]))

    mailbox, until = waiting.check(place), waiting.until(place)
    assert mailbox is not None  # the command asks for it
    party = unattended.Hospital(place, mailbox, site, until, train_and_show, require_signatures, screen.say)
    unattended.wait(party, waiting.seconds)
    end = f"the global adapter of round {until} is there"
    screen.result({"contributions": [record.to_dict() for record in records]}, end)
