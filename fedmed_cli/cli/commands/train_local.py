"""`fedmed train-local`: one hospital trains its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse


def train_local(
    site: Annotated[str, typer.Option("--site", help="This hospital's name in the plan.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="The hospital's own file (or several, or a glob); without it, data/SITE/ of the workspace."
        ),
    ] = None,
    columns: o.ColumnsOption = None,
    max_bad: o.MaxBadOption = 0.001,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="With --data, keep rows with the same value together.")
    ] = None,
    near_duplicates: o.NearDuplicatesOption = "0.6",
    phi: o.PhiOption = "warn",
    global_adapter: Annotated[
        Path | None, typer.Option("--global", help="The coordinator's global adapter of the previous round.")
    ] = None,
    training: o.TrainingOptions = o.TrainingOptions(),
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=1, help="Validation examples to measure on.")
    ] = 100,
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Train one hospital's adapter on its own examples and write adapters/SITE/, which may leave the hospital.

    It starts from the newest global adapter, or the plan's initial one. What all sites must do alike is in the plan.

    Example: fedmed train-local --site B --data records.jsonl
    """
    from fedmed_cli.adapters import archive
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.data.examples import read_dataset
    from fedmed_cli.data.identifiers import MODES, Mode
    from fedmed_cli.errors import InputError, UsageError
    from fedmed_cli.federation.site import accept_global
    from fedmed_cli.trust.keys import signer_for

    screen, place = common.open()
    plan = place.read_plan()
    if site not in plan.sites.names:
        raise InputError(f"the plan has no site {site!r}", hint=f"its sites are {', '.join(plan.sites.names)}")
    if data is None and (columns or group_by):
        raise UsageError("--columns and --group-by go with --data")
    phi_mode: Mode = parse.choice("--phi", phi, MODES)
    similarity = parse.similarity("--near-duplicates", near_duplicates)
    mapped = parse.mapping("--columns", columns) if columns else None
    signer = signer_for(site, plan, load_signer(screen, key, place.root))
    choices = training.choices(max_eval_samples)
    with place.lock():
        rows = read_dataset(data, mapped, None, max_bad, place.private / "hub") if data else None
        accepted = None
        if global_adapter is None:
            round_number = place.newest_round() + 1
            start = archive.starting_adapter(place, plan, round_number)
        else:
            folder, is_new = accept_global(place, plan, global_adapter, require_signatures, screen.say)
            accepted, round_number, start = folder if is_new else None, folder.record.round + 1, folder.adapter
        local = model.find(plan.base, screen)

        from fedmed_cli.data import site_data
        from fedmed_cli.federation import site as core

        if rows is None:
            examples = site_data.workspace_data(place, site)
        else:
            examples = site_data.file_data(
                place, plan, site, rows, group_by, screen.say, near_duplicates=similarity, phi_mode=phi_mode
            )
        from fedmed_cli.cli.progress import step_events

        screen.say(f"site {site}, round {round_number}: {len(examples.train):,} training examples")
        with step_events(screen, site) as events:
            result = core.train_local(
                place,
                plan,
                model.load(local, screen, training.load_in_4bit),
                site,
                examples,
                start,
                round_number,
                choices,
                accepted=accepted,
                signer=signer,
                events=events,
            )
    from fedmed_cli.cli.tables.round import contribution_parts

    if result.replaced:
        screen.say(f"the older contribution is kept in {place.relative(result.replaced)}")
    screen.result(
        result.record.to_dict(),
        *contribution_parts(result.record),
        f"wrote {result.path}: send this folder to the coordinator",
    )
