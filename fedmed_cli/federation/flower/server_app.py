"""The coordinator as a Flower ServerApp: a loop of its own on the Grid around the one that waits for a shared folder.

What nodes answer is put into a folder of the workspace as if it had come by mail, so that the gate, the deadline, late
and refused contributions, and a restart are the same as without Flower.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.errors import FedmedError, UsageError
from fedmed_cli.events import Events
from fedmed_cli.federation import coordinator, steps
from fedmed_cli.federation.flower.messages import (
    INBOX_NAME,
    RUN_SETTINGS,
    about,
    bundle_of,
    exit_code_of,
    load_signer,
    make_content,
    read_settings,
    say,
)
from fedmed_cli.federation.mailbox import bundle_name
from fedmed_cli.federation.unattended import Coordinator
from fedmed_cli.records.combining import WEIGHTINGS
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.text import number_of_seconds
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import make_folders, write_in_place

WEEK = 7 * 86_400.0
PATIENCE = 3_600.0  # for nodes to take the last global adapter

Ask = tuple[int, str, int]  # node, kind of message, round

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run rounds until the one that the run's settings name is there, and all nodes that are at work have it."""
    settings = read_settings(context.run_config, RUN_SETTINGS)
    poll = settings["poll"] or 5.0
    party, inbox = make_party(settings)
    exchange = Exchange(grid, party.workspace, inbox, settings["simulation.sites"] is not None)
    while not party.look():
        exchange.ask("train")
        exchange.collect()
        time.sleep(poll)
    ends = time.monotonic() + PATIENCE
    while exchange.ask("query") and time.monotonic() < ends:
        time.sleep(poll)
        exchange.collect()


def make_party(settings: Mapping[str, Any]) -> tuple[Coordinator, Path]:
    """The coordinator that the run's settings describe, and the folder that it takes contributions from."""
    place = Workspace(Path(settings["workspace"] or "."), say)
    plan = place.read_plan()
    if settings["weights"] not in (None, *WEIGHTINGS):
        raise UsageError(f"weights: expected one of {', '.join(WEIGHTINGS)}, found {settings['weights']!r}")
    inbox = place.private / INBOX_NAME
    place.make_private()
    make_folders(inbox)
    combine = partial(
        steps.aggregate,
        place,
        settings=coordinator.default_settings(place, settings["weights"], say),
        signer=load_signer(settings["key"], COORDINATOR, plan),
        require_signatures=bool(settings["require-signatures"]),
        events=Events(say),
    )
    party = Coordinator(
        place,
        inbox,
        settings["rounds"] or place.newest_round() + 1,
        settings["min-sites"] or plan.sites.min_sites,
        number_of_seconds(settings["deadline"]) if settings["deadline"] else None,
        combine,
        bool(settings["require-signatures"]),
        say,
    )
    return party, inbox


@dataclass
class Exchange:
    """What was asked of which node in this run, and what came of it.

    A node that answered is asked again in the next round, one that failed at the next look. An answer that comes late
    is put into the inbox all the same: the coordinator says what it is. Simulated nodes have the run's settings, so one
    that refuses them ends the run: nobody could mend them there.
    """

    grid: Grid
    workspace: Workspace
    inbox: Path
    is_simulation: bool = False
    _open: dict[str, Ask] = field(default_factory=dict)
    _answered: set[Ask] = field(default_factory=set)

    def ask(self, kind: str) -> int:
        """Ask each node once: to "train" the next round, or only to file the newest one; how many have not answered."""
        number = self.workspace.newest_round() + 1
        asks = [(node, kind, number) for node in sorted(self.grid.get_node_ids())]
        new = [ask for ask in asks if ask not in self._answered and ask not in self._open.values()]
        bundle = self._bundle(number - 1) if new else None
        for ask in new:
            message = Message(make_content(bundle, round=number), ask[0], kind, ttl=WEEK, group_id=str(number))
            self._open |= {one: ask for one in self.grid.push_messages([message]) if one}  # none: that node has gone
        return sum(ask not in self._answered for ask in asks)

    def _bundle(self, newest: int) -> bytes | None:
        if not newest:
            return None
        return pack(archive.archived_global(self.workspace, self.workspace.read_plan(), newest).files)

    def collect(self) -> None:
        """Put what came into the inbox; UsageError where a simulated node refuses the run's settings."""
        for reply in self.grid.pull_messages(list(self._open)) if self._open else ():
            ask = self._open.pop(reply.metadata.reply_to_message_id)
            code = None if reply.has_error() else exit_code_of(reply.content)
            if self.is_simulation and code == UsageError.exit_code:
                raise UsageError("a simulated node refuses the run's settings: its reason is above")
            if reply.has_error() or code is not None:
                fault = f"error {reply.error.code}" if reply.has_error() else f"exit code {code}"
                say(f"node {ask[0]}: no answer for round {ask[2]} ({fault}); it is asked again")
                continue
            self._answered.add(ask)
            bundle, site = bundle_of(reply.content), about(reply.content).get("site")
            if bundle is not None and site in self.workspace.read_plan().sites.names:
                self._file(ask, str(site), bundle)
            elif ask[1] == "train":
                say(f"node {ask[0]}: answered for round {ask[2]} without a contribution of a site of the plan")

    def _file(self, ask: Ask, site: str, bundle: bytes) -> None:
        """Put a bundle into the inbox, but not in place of one that passes the gate: a node may name any site."""
        target, plan = self.inbox / bundle_name(ask[2], site), self.workspace.read_plan()
        start = archive.starting_adapter(self.workspace, plan, ask[2]).digest
        try:
            gate.read_contribution(target, plan, (ask[2], start), site=site)
        except FedmedError:
            write_in_place(target, bundle)
        else:
            say(f"node {ask[0]}: answered for round {ask[2]} as site {site}, whose contribution is here and is kept")
