"""`fedmed compare score`: a hospital scores the others' adapters, for `--weights crosseval`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def score(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=2, help="Validation examples to score on.")
    ] = 600,
    model: o.ModelOptions = o.ModelOptions(),
    key: o.KeyOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Inside a hospital: score all of adapters/ on its validation examples and write scores/SITE.json, signed.

    The coordinator can weight sites by these scores: fedmed aggregate --weights crosseval.

    Example: fedmed compare score --site B
    """
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.federation.plan import check_site
    from fedmed_cli.reporting.tables.round import scores_table
    from fedmed_cli.trust.keys import signer_for, write_signed

    screen, place = common.open()
    plan = place.read_plan()
    check_site(plan, site)
    signer = signer_for(site, plan, load_signer(screen, key, place.root))
    with place.lock():
        base = model.base_model(screen)
        base.find(plan.base)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.federation import cross_scores

        lm = base.load(plan.base)
        with step_events(screen, f"scoring at {site}") as events:
            record = cross_scores.score(place, plan, lm, site, max_eval_samples, events)
        path = place.scores / f"{site}.json"
        write_signed(place, path, record, signer)
    screen.result(
        record.to_dict(),
        scores_table([record]),
        f"wrote {path}: send it to the coordinator{', with {path.name}.sig' if signer else ''}",
    )
