"""`fedmed audit`: what an attacker would find in a hospital's adapter, before it leaves."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def audit(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=2, help="Examples of each kind to measure.")
    ] = 600,
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Measure how well an attacker could tell from adapters/SITE/ who was in the training data.

    It runs inside the hospital, on its own examples, and writes only numbers, to reports/audit-SITE.json. With canaries
    (train-local --canaries 200) it also bounds epsilon from below.

    Example: fedmed audit --site B
    """
    from fedmed_cli.cli.progress import step_events
    from fedmed_cli.federation import steps
    from fedmed_cli.reporting.tables.privacy import audit_parts

    screen, place = common.open()
    with step_events(screen, site) as events:
        path, record = steps.audit(
            place, site, max_eval_samples=max_eval_samples, base=model.base_model(screen), events=events
        )
    screen.result(record.to_dict(), *audit_parts(record), f"wrote {place.relative(path)}")
