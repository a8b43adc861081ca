"""`fedmed init`: write the plan alone."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse


def init(
    names: Annotated[str, typer.Option("--names", help="Comma-separated names of the sites.")],
    min_sites: Annotated[
        int | None, typer.Option("--min-sites", min=1, help=r"Minimum contributions per round \[more than half].")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="flower: also write the app that runs rounds over Flower.")
    ] = None,
    plan: o.PlanOptions = o.PlanOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Write only the plan (federation.toml); use when each hospital keeps its own data.

    Example: fedmed init --names A,B,C --base smollm2-135m
    """
    from fedmed_cli.errors import ConflictError
    from fedmed_cli.federation.flower.app_files import write_app
    from fedmed_cli.federation.plan import make_plan
    from fedmed_cli.records.digests import short
    from fedmed_cli.workspace.durable import write_file

    if engine is not None:
        parse.choice("--engine", engine, ["flower"])
    screen, place = common.open()
    if place.plan_path.exists():
        raise ConflictError(f"{place.plan_path} exists already", hint="use another folder with --workspace")
    written = make_plan(plan.parsed(), parse.names("--names", names), min_sites, screen.say)
    with place.lock():
        write_file(place.plan_path, written.to_bytes())
    app = write_app(place.root, written.sites.min_sites) if engine else None
    screen.result(
        {
            "plan": written.digest,
            "path": str(place.plan_path),
            "sites": list(written.sites.names),
            "app": str(app) if app else None,
        },
        f"wrote {place.plan_path} (plan {short(written.digest)}): send this file to {', '.join(written.sites.names)}",
        *([f"wrote {app}: the coordinator runs it with 'flwr run {app}' (docs/flower.md)"] if app else []),
    )
