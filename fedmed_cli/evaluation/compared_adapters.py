"""Which adapters a comparison measures, and which site each of them serves worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation.methods import factor_mean
from fedmed_cli.errors import CombineError, UsageError
from fedmed_cli.events import Say
from fedmed_cli.records.checks import (
    ALONE,
    BASE,
    BOUNDS,
    FACTOR_MEAN,
    GLOBAL,
    GLOBAL_OF_ROUND,
    PERSONAL,
    RESERVED_STARTS,
)
from fedmed_cli.records.comparison import Score
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def workspace_adapters(
    workspace: Workspace, plan: Plan, all_rounds: bool = False, say: Say = lambda message: None
) -> dict[str, Adapter]:
    """The adapters of a workspace by name: each site's last, the newest global one (or all), the mean of factors.

    `archive.site_contribution` says which adapter of a site is meant. TrustError where an archived adapter is not
    the one that the round's record names.
    """
    newest = workspace.newest_round()
    adapters = {}
    for site in plan.sites.names:
        last = archive.site_contribution(workspace, plan, site)
        if last is not None:
            adapters[site] = last.adapter
            if last.path != workspace.contribution(site) and last.record.round != newest:
                say(f"site {site}: its last adapter is of round {last.record.round}, the newest round is {newest}")
    for number in range(1 if all_rounds else max(newest, 1), newest + 1):
        name = GLOBAL if number == newest else f"{GLOBAL_OF_ROUND}{number}"
        adapters[name] = archive.archived_global(workspace, plan, number).adapter
    mean = _mean_of_factors(workspace, plan, newest, say) if newest else None
    if mean is not None:
        adapters[FACTOR_MEAN] = mean
    return adapters


def _mean_of_factors(workspace: Workspace, plan: Plan, newest: int, say: Say) -> Adapter | None:
    """The newest round's contributions averaged factor by factor with the recorded weights.

    That is how most federations of LoRA adapters aggregate; None, said, where it cannot be made here.
    """
    record = archive.archived_global(workspace, plan, newest).record
    used = {site: decision for site, decision in record.sites.items() if decision.verdict != "rejected"}
    missing = [site for site in used if not (workspace.round(newest) / site).is_dir()]
    if missing:
        if len(missing) < len(used):
            say(f"no {FACTOR_MEAN}: rounds/{newest:03d} does not hold the contribution of {', '.join(missing)}")
        return None  # a hospital's workspace: it has never had the others' contributions
    contributions = []
    for site in used:
        folder = archive.archived_contribution(workspace, plan, newest, site)
        archive.check_as_filed(folder, record)
        contributions.append(folder.adapter)
    weights = [record.server_lr * decision.weight * decision.clip_factor for decision in used.values()]
    if record.server_momentum:
        say(f"{FACTOR_MEAN} is without the round's server momentum: it has no meaning for factors")
    try:
        return factor_mean(plan, archive.starting_adapter(workspace, plan, newest), contributions, weights)[0]
    except CombineError as error:
        say(f"no {FACTOR_MEAN}: {error.message}")
        return None


def personal_adapters(workspace: Workspace, plan: Plan, site: str | None, say: Say) -> dict[str, tuple[str, Adapter]]:
    """The private adapters in this workspace (of `site` alone, where it measures) by name: whose, and the adapter."""
    adapters = {}
    for owner in [site] if site else plan.sites.names:
        folder = archive.personal_adapter(workspace, plan, owner)
        if folder is not None:
            name = f"{PERSONAL}{owner}"
            newest = workspace.newest_round()
            if not newest or folder.record.parent != archive.archived_global(workspace, plan, newest).adapter.digest:
                say(f"{name} was made from round {folder.record.round}: run 'fedmed personalise' for the newest round")
            adapters[name] = (owner, folder.adapter)
    return adapters


def named_adapters(plan: Plan, arguments: Sequence[str], others: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """Adapters given as PATH or NAME=PATH; UsageError where a name is already that of another one."""
    adapters: dict[str, Adapter] = {}
    for text in arguments:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name, text
        if name in (BASE, *BOUNDS, *others, *adapters) or name.startswith(RESERVED_STARTS):
            raise UsageError(f"--adapter {text}: the name {name!r} is taken", hint="give another: --adapter NAME=PATH")
        if not (0 < len(name) <= 80 and name.isprintable()):
            raise UsageError(f"--adapter {text[:80]!a}: the name must be 1 to 80 printable characters")
        adapters[name] = gate.read_folder(Path(path), plan).adapter
    return adapters


def local_only(plan: Plan, arguments: Sequence[str]) -> dict[str, tuple[str, Adapter]]:
    """Adapters trained without the federation, given as SITE=PATH: `alone-SITE` to the site and its adapter."""
    adapters: dict[str, tuple[str, Adapter]] = {}
    for text in arguments:
        site, equals, path = text.partition("=")
        if not equals or site not in plan.sites.names:
            raise UsageError(f"--alone {text[:80]!a}: expected SITE=PATH with a site of {', '.join(plan.sites.names)}")
        name = f"{ALONE}{site}"
        if name in adapters:
            raise UsageError(f"--alone {text}: the name {name!r} is taken")
        adapters[name] = (site, gate.read_folder(Path(path), plan).adapter)
    return adapters


def worst_sites(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, str]:
    """For each adapter the site where it gains least over the base (or loses most), from `scores[adapter][site]`."""
    worst = {}
    for name, by_site in scores.items():
        differences = {site: score.against_base.mean for site, score in by_site.items() if score.against_base}
        if len(differences) > 1:
            worst[name] = max(differences, key=lambda site: (differences[site], site))
    return worst
