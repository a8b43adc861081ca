"""Which adapter a chat takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import InputError
from fedmed_cli.events import Progress, Say
from fedmed_cli.records.digests import short
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

if TYPE_CHECKING:
    from fedmed_cli.models.language_model import LanguageModel

Measure = Callable[[dict[str, Adapter]], dict[str, float]]


@dataclass(frozen=True)
class Chosen:
    """An adapter (None: the plain base) with how to call it."""

    name: str
    adapter: Adapter | None


BASE = Chosen("base model, no adapter", None)


def choose_adapter(
    workspace: Workspace, plan: Plan, name: str | None, say: Say, measure: Measure | None = None
) -> Chosen:
    """The adapter for "base", "global", "best", a site or a folder; by default the newest global one.

    "best" is what has the least loss on the coordinator's examples, as `measure` finds it. InputError where there is
    none.
    """
    newest = workspace.newest_round()
    if name == "base":
        return BASE
    if name in (None, "global"):
        if not newest:
            if name == "global":
                raise InputError(
                    "there is no global adapter yet",
                    hint="run 'fedmed round' or 'fedmed aggregate', or use --adapter base",
                )
            say("there is no global adapter yet: the base model answers")
            return BASE
        adapter = gate.read_global(workspace.global_adapter(newest), plan).adapter
        return Chosen(f"global adapter of round {newest} ({short(adapter.digest)})", adapter)
    assert name is not None
    if name == "best":
        return _best(workspace, plan, say, measure)
    if name in plan.sites.names:
        return site_adapter(workspace, plan, name)
    adapter = gate.read_folder(Path(name), plan).adapter
    return Chosen(f"adapter {name} ({short(adapter.digest)})", adapter)


def site_adapter(workspace: Workspace, plan: Plan, site: str) -> Chosen:
    """A site's last adapter, as `archive.site_adapter` finds it."""
    if site not in plan.sites.names:
        raise InputError(f"no site {site!r} in the plan, expected one of {', '.join(plan.sites.names)}")
    last = archive.site_adapter(workspace, plan, site)
    if last is None:
        raise InputError(f"site {site} has no adapter yet", hint=f"run 'fedmed train-local --site {site}'")
    where = f"of round {last.round_number}" if last.round_number else "in the mailbox"
    return Chosen(f"adapter of site {site} {where} ({short(last.adapter.digest)})", last.adapter)


def _best(workspace: Workspace, plan: Plan, say: Say, measure: Measure | None) -> Chosen:
    newest = workspace.newest_round()
    names = [site for site in plan.sites.names if (workspace.round(newest) / site).is_dir()] if newest else []
    found = {site: site_adapter(workspace, plan, site) for site in names}
    if newest:
        found["global"] = choose_adapter(workspace, plan, "global", say)
    if not found or measure is None:
        raise InputError("--adapter best: there is no adapter yet", hint="run 'fedmed round' first")
    losses = measure({name: chosen.adapter for name, chosen in found.items() if chosen.adapter is not None})
    best = min(losses, key=lambda name: (losses[name], name))
    shown = ", ".join(f"{name} {losses[name]:.4f}" for name in sorted(losses))
    say(f"loss on the coordinator's examples: {shown}")
    say(f"best is {best}; these losses were used to choose it; do not report them as results")
    return found[best]


def measure_on_coordinator(
    workspace: Workspace, plan: Plan, lm: LanguageModel, say: Say, progress: Progress | None = None
) -> Measure:
    """Mean losses of adapters on the coordinator's deciding examples, remembered. InputError where it has none."""

    def measure(candidates: dict[str, Adapter]) -> dict[str, float]:
        from fedmed_cli import intervals
        from fedmed_cli.evaluation import coordinator_set, measuring

        items = coordinator_set.coordinator_set(workspace, plan, lm, "decide", None, say)
        if items is None:
            raise InputError("data/coordinator.jsonl: there are no coordinator's examples to find the best with")
        return {
            name: intervals.summarize(
                measuring.measure_cached(workspace, plan, lm, adapter, items, progress), items.groups
            ).mean
            for name, adapter in candidates.items()
        }

    return measure
