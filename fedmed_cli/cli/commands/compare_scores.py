"""`fedmed compare --scores`: a hospital scores the others' adapters, for `--weights crosseval`."""

from __future__ import annotations

from fedmed_cli.cli.options import ModelOptions
from fedmed_cli.cli.screen import Screen
from fedmed_cli.errors import UsageError
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_file


def write_scores(
    screen: Screen,
    place: Workspace,
    plan: Plan,
    site: str | None,
    max_eval_samples: int,
    model: ModelOptions,
) -> None:
    """Score the contributions in adapters/ on a hospital's validation examples and write scores/SITE.json."""
    if site not in plan.sites.names:
        raise UsageError(f"--scores goes with --site, one of {', '.join(plan.sites.names)}")
    with place.lock():
        local = model.find(plan.base, screen)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.cli.tables.federation import scores_table
        from fedmed_cli.federation import cross_scores

        lm = model.load(local, screen)
        with step_events(screen, f"scoring at {site}") as events:
            record = cross_scores.score(place, plan, lm, site, max_eval_samples, events)
        path = place.scores / f"{site}.json"
        place.set_aside(path)
        write_file(path, record.to_bytes())
    screen.result(record.to_dict(), scores_table(record), f"wrote {path}: send this file to the coordinator")
