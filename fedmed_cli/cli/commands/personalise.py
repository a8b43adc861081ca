"""`fedmed personalise`: a hospital's private adapter on top of the global one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def personalise(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    max_steps: Annotated[
        int | None, o.option("--max-steps", "Training steps [the plan's in all rounds so far].", min=1)
    ] = None,
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=2, help="Validation examples to measure on, in each half.")
    ] = 300,
    load_in_4bit: o.FourBitOption = False,
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Mix a hospital's own training into the global adapter, as far as it helps there, and write personal/SITE/.

    One half of its validation examples chooses how much, the other half decides whether it helps; if not, nothing is
    written, and an older private adapter is set aside. The private adapter does not leave the hospital: pack and
    aggregate refuse it. What it gains is measured on test examples: fedmed compare --site SITE.

    Example: fedmed personalise --site C && fedmed chat --adapter personal-C
    """
    from fedmed_cli.cli.progress import step_events
    from fedmed_cli.cli.tables.personal import personal_parts
    from fedmed_cli.federation import steps
    from fedmed_cli.training.options import SiteSettings

    screen, place = common.open()
    settings = SiteSettings(max_steps=max_steps, max_eval_samples=max_eval_samples)
    with step_events(screen, site) as events:
        result = steps.personalise(
            place, site, settings=settings, base=model.base_model(screen, load_in_4bit), events=events
        )
    wrote = [f"wrote {place.relative(result.path)}: it does not leave the hospital"] if result.path else []
    value = {
        "personal": result.record.to_dict() if result.record else None,
        "losses": result.losses,
        "share": result.share,
        "change": asdict(result.change) if result.change else None,
        "num_choosing": result.num_choosing,
        "num_deciding": result.num_deciding,
    }
    screen.result(value, *personal_parts(result, site), *wrote)
