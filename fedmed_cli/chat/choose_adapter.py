"""Which adapter a chat takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.folder import AdapterFolder, ContributionFolder, GlobalFolder, PersonalFolder
from fedmed_cli.errors import InputError
from fedmed_cli.events import Progress, Say
from fedmed_cli.records.checks import PERSONAL
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
    if name == "base":
        return BASE
    if name is None and not workspace.newest_round():
        say("there is no global adapter yet: the base model answers")
        return BASE
    if name == "best":
        assert load is not None
        return _best(workspace, plan, load(), say, progress)
    name = name or "global"
    return _describe(workspace, plan, name, archive.find_folder(workspace, plan, name))


def _describe(workspace: Workspace, plan: Plan, name: str, folder: AdapterFolder) -> NamedAdapter:
    """What was found under a name, as people read it."""
    about = f"adapter {name}"
    if isinstance(folder, GlobalFolder) and name == "global":
        about = f"global adapter of round {folder.record.round}"
    elif isinstance(folder, ContributionFolder) and name in plan.sites.names:
        is_sent = folder.path == workspace.contribution(name)
        about = f"adapter of site {name} {'in the mailbox' if is_sent else f'of round {folder.record.round}'}"
    elif isinstance(folder, PersonalFolder):
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
    sites = [site for site in plan.sites.names if (workspace.round(newest) / site).is_dir()]
    candidates = {name: choose_adapter(workspace, plan, name, say) for name in ("global", *sites)}
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
    folders: dict[str, AdapterFolder | None] = {}
    if newest := workspace.newest_round():
        folders["global"] = archive.archived_global(workspace, plan, newest)
    for site in plan.sites.names:
        folders[site] = archive.site_contribution(workspace, plan, site)
        folders[f"{PERSONAL}{site}"] = archive.personal_adapter(workspace, plan, site)
    found = {name: _describe(workspace, plan, name, folder) for name, folder in folders.items() if folder}
    return {"base": BASE, **found}
