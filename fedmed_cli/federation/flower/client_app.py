"""A hospital as a Flower ClientApp: it takes the global adapter, trains on its own file, and answers with its bundle.

Which workspace, site and file these are is said on the hospital's own machine, by the node's settings; in Flower's
simulation, where nodes are numbers, by the run's. What goes wrong is in the node's log; the coordinator gets the exit
code alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmed_cli.adapters.bundle import pack
from fedmed_cli.adapters.folder import ContributionFolder
from fedmed_cli.data.sources import Source
from fedmed_cli.data.split_options import IndexOptions
from fedmed_cli.errors import ConflictError, FedmedError, UsageError
from fedmed_cli.events import Events
from fedmed_cli.federation import steps
from fedmed_cli.federation.flower.messages import (
    INBOX_NAME,
    RUN_SETTINGS,
    about,
    bundle_of,
    load_signer,
    make_content,
    read_settings,
    say,
)
from fedmed_cli.federation.mailbox import GLOBAL, bundle_name
from fedmed_cli.federation.plan import check_site
from fedmed_cli.federation.unattended import Hospital
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.training.options import DEFAULT_EVAL_SAMPLES, SiteSettings
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import make_folders, write_in_place

SETTINGS = {
    "workspace": str,
    "site": str,
    "data": str,
    "group-by": str,
    "base": str,
    "max-steps": int,
    "save-steps": int,
    "max-eval-samples": int,
    "key": str,
    "require-signatures": bool,
    "privacy-ledger": str,
}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the site's contribution to the round that is asked for, trained now or before."""
    return _answer(message, context, lambda party, number: party.contribute(number))


@app.query()
def file_global(message: Message, context: Context) -> Message:
    """File the global adapter that comes with the message."""
    return _answer(message, context, lambda party, number: None)


def _answer(message: Message, context: Context, act: Callable[[Hospital, int], ContributionFolder | None]) -> Message:
    try:
        party, inbox = make_party(settings_of(context.node_config, context.run_config))
        number = about(message.content).get("round")
        if not isinstance(number, int):
            raise UsageError("the message does not say for which round it is")
        bundle = bundle_of(message.content)
        if bundle is not None:
            path = inbox / bundle_name(number - 1, GLOBAL)
            write_in_place(path, bundle)
            party.accept(path)
        if party.workspace.newest_round() != number - 1:
            raise ConflictError(
                f"round {number} was asked for, but round {party.workspace.newest_round()} is the newest here"
            )
        folder = act(party, number)
        files = pack(folder.files) if folder else None
        content = make_content(files, site=party.site, round=number)
    except FedmedError as error:
        say(f"error: {error.message}" + (f"; {error.hint}" if error.hint else ""))
        content = make_content(None, exit_code=error.exit_code)
    except Exception as error:  # Flower would send its text to the coordinator, and it may quote an example
        frames = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)[-6:]]
        say(f"error: this is a bug in fedmed: {type(error).__name__} at {', '.join(frames)}")
        content = make_content(None, exit_code=FedmedError.exit_code)
    return Message(content, reply_to=message)


def settings_of(node: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a node was started with.

    In Flower's simulation it has only its number: it is then the site of the plan with that number, and the run's
    settings say where that site's workspace and key are. UsageError where numbers and sites are not as many.
    """
    if set(node) != {"partition-id", "num-partitions"}:
        return read_settings(node, SETTINGS)
    simulated = read_settings(run, RUN_SETTINGS)
    if simulated["simulation.sites"] is None:
        raise UsageError("the node has no settings but its number", hint="--run-config 'simulation.sites=\"...\"'")
    names = Workspace(Path(simulated["workspace"] or ".")).read_plan(remember=False).sites.names
    number, count = node["partition-id"], node["num-partitions"]
    if count != len(names) or number not in range(count):
        raise UsageError(
            f"this is node {number} of {count}, and the plan has {len(names)} sites",
            hint=f"--federation-config 'num-supernodes={len(names)}'",
        )
    site, keys = names[number], simulated["simulation.keys"]
    given = {
        "workspace": str(Path(simulated["simulation.sites"], site)),
        "site": site,
        "key": str(Path(keys, site)) if keys else None,
        "base": simulated["simulation.base"],
        "max-steps": simulated["simulation.max-steps"] or None,
        "max-eval-samples": simulated["simulation.max-eval-samples"] or None,
        "require-signatures": simulated["require-signatures"],
    }
    return dict.fromkeys(SETTINGS) | given


def make_party(settings: dict[str, Any]) -> tuple[Hospital, Path]:
    """The hospital that the node's settings describe, and the folder that global adapters are put into."""
    for name in ("workspace", "site"):
        if settings[name] is None:
            raise UsageError(f"the node's settings name no {name}", hint=f"--node-config '{name}=\"...\"'")
    place, site = Workspace(Path(settings["workspace"]), say), settings["site"]
    plan = place.read_plan()
    check_site(plan, site)
    ledger = settings["privacy-ledger"]
    train_site = partial(
        steps.train_site,
        place,
        site,
        Source([settings["data"]]) if settings["data"] else None,
        IndexOptions(group_by=settings["group-by"]),
        settings=SiteSettings(
            max_steps=settings["max-steps"],
            save_steps=settings["save-steps"],
            max_eval_samples=settings["max-eval-samples"] or DEFAULT_EVAL_SAMPLES,
        ),
        base=BaseModel(settings["base"], say=say),
        signer=load_signer(settings["key"], site, plan),
        require_signatures=bool(settings["require-signatures"]),
        ledger=Path(ledger) if ledger else None,
        events=Events(say),
    )
    inbox = place.private / INBOX_NAME
    place.make_private()
    make_folders(inbox)
    requires = bool(settings["require-signatures"])
    return Hospital(place, inbox, site, place.newest_round() + 1, train_site, requires, say), inbox
