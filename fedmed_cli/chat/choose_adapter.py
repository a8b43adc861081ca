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


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter (None: the plain base) with how to call it."""

    name: str
    adapter: Adapter | None

    @property
    def digest(self) -> str | None:
        return self.adapter.digest if self.adapter else None


BASE = NamedAdapter("base model, no adapter", None)


def choose_adapter(
    workspace: Workspace,
    plan: Plan,
    name: str | None,
    say: Say,
    load: Callable[[], LanguageModel] | None = None,
    progress: Progress | None = None,
) -> NamedAdapter:
    """The adapter for "base", "global", "best", a site, "personal-SITE" or a folder; by default the newest global one.

    "best" is what has the least loss on the coordinator's deciding examples, for which `load` gives the model.
    InputError where there is none.
    """
    newest = workspace.newest_round()
    if name == "base":
        return BASE
    if name in (None, "global"):
        if newest:
            adapter = archive.archived_global(workspace, plan, newest).adapter
            return NamedAdapter(f"global adapter of round {newest} ({short(adapter.digest)})", adapter)
        if name == "global":
            raise InputError(
                "there is no global adapter yet",
                hint="run 'fedmed round' or 'fedmed aggregate', or use --adapter base",
            )
        say("there is no global adapter yet: the base model answers")
        return BASE
    assert name is not None
    if name == "best":
        assert load is not None
        return _best(workspace, plan, load(), say, progress)
    if name in plan.sites.names:
        return site_adapter(workspace, plan, name)
    if name.startswith(archive.PERSONAL) and (own := personal_adapter(workspace, plan, name)):
        return own
    adapter = gate.read_folder(Path(name), plan).adapter
    return NamedAdapter(f"adapter {name} ({short(adapter.digest)})", adapter)


def site_adapter(workspace: Workspace, plan: Plan, site: str) -> NamedAdapter:
    """A site's last adapter, as `archive.site_adapter` finds it."""
    last = archive.site_adapter(workspace, plan, site)
    if last is None:
        raise InputError(f"site {site} has no adapter yet", hint=f"run 'fedmed train-local --site {site}'")
    where = f"of round {last.round_number}" if last.round_number else "in the mailbox"
    return NamedAdapter(f"adapter of site {site} {where} ({short(last.adapter.digest)})", last.adapter)


def personal_adapter(workspace: Workspace, plan: Plan, name: str) -> NamedAdapter | None:
    """The private adapter called "personal-SITE", if there is one."""
    folder = archive.personal_adapter(workspace, plan, name.removeprefix(archive.PERSONAL))
    if folder is None:
        return None
    about = f"private adapter of site {folder.record.site}, from round {folder.record.round}"
    return NamedAdapter(f"{about} ({short(folder.adapter.digest)})", folder.adapter)


def _best(workspace: Workspace, plan: Plan, lm: LanguageModel, say: Say, progress: Progress | None) -> NamedAdapter:
    from fedmed_cli import intervals
    from fedmed_cli.evaluation import coordinator_set, measuring

    newest = workspace.newest_round()
    if not newest:
        raise InputError("--adapter best: there is no adapter yet", hint="run 'fedmed round' first")
    items = coordinator_set.coordinator_set(workspace, plan, lm, "decide", None, say)
    if items is None:
        raise InputError("data/coordinator.jsonl: there are no coordinator's examples to find the best with")
    candidates = {"global": choose_adapter(workspace, plan, "global", say)}
    for site in plan.sites.names:
        if (workspace.round(newest) / site).is_dir():
            candidates[site] = site_adapter(workspace, plan, site)
    losses = {}
    for name, named in candidates.items():
        assert named.adapter is not None
        values = measuring.measure_cached(workspace, plan, lm, named.adapter, items, progress)
        losses[name] = intervals.summarize(values, items.groups).mean
    best = min(losses, key=lambda name: (losses[name], name))
    say(f"loss on the coordinator's examples: {', '.join(f'{name} {losses[name]:.4f}' for name in sorted(losses))}")
    say(f"best is {best}; these losses were used to choose it; do not report them as results")
    return candidates[best]


def all_adapters(workspace: Workspace, plan: Plan) -> dict[str, NamedAdapter]:
    """Everything that can answer, by the name it is asked for: base, global, each site's and private ones."""
    found = {"base": BASE}
    if workspace.newest_round():
        found["global"] = choose_adapter(workspace, plan, "global", lambda message: None)
    for site in plan.sites.names:
        if archive.site_adapter(workspace, plan, site) is not None:
            found[site] = site_adapter(workspace, plan, site)
        if own := personal_adapter(workspace, plan, f"{archive.PERSONAL}{site}"):
            found[f"{archive.PERSONAL}{site}"] = own
    return found
