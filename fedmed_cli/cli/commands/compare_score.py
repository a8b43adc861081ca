"""`fedmed compare score`: a hospital scores the others' adapters, for `--weights crosseval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def score(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=2, help="Validation examples to score on.")
    ] = 600,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Inside a hospital: score all of adapters/ on its validation examples and write scores/SITE.json.

    The coordinator may weigh by the hospitals' scores: fedmed aggregate --weights crosseval.

    Example: fedmed compare score --site B
    """
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.durable import write_file
    from fedmed_cli.errors import UsageError
    from fedmed_cli.models.bases import find_for_plan
    from fedmed_cli.report.tables.round import scores_table
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    if site not in plan.sites.names:
        raise UsageError(f"--site {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    with place.lock():
        local = find_for_plan(plan.base, base, base_wheel, screen.say)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.federation import cross_scores
        from fedmed_cli.models import language_model

        lm = language_model.load(local, device, screen.say, screen.detail)
        with step_events(screen, f"scoring at {site}") as events:
            record = cross_scores.score(place, plan, lm, site, max_eval_samples, events)
        path = place.scores / f"{site}.json"
        place.set_aside(path)
        write_file(path, record.to_bytes())
    screen.result(record.to_dict(), scores_table([record]), f"wrote {path}: send this file to the coordinator")
