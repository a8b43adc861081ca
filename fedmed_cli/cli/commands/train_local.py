"""`fedmed train-local`: one hospital trains its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


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
    max_steps: o.MaxStepsOption = None,
    batch_size: o.BatchSizeOption = 2,
    gradient_accumulation_steps: o.AccumulationOption = 1,
    num_train_epochs: o.EpochsOption = None,
    max_batch_tokens: o.BatchTokensOption = None,
    gradient_checkpointing: o.CheckpointingOption = False,
    load_in_4bit: o.FourBitOption = False,
    eval_steps: o.EvalStepsOption = None,
    early_stopping_patience: o.PatienceOption = None,
    save_steps: o.SaveStepsOption = None,
    logging_steps: o.LoggingStepsOption = 10,
    report_to: o.ReportToOption = None,
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=1, help="Validation examples to measure on.")
    ] = 100,
    device: o.DeviceOption = "auto",
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Train one hospital's adapter on its own examples and write adapters/SITE/, which may leave the hospital.

    It starts from the newest global adapter, or the plan's initial one. What all sites must do alike is in the plan.

    Example: fedmed train-local --site B --data records.jsonl
    """
    from fedmed_cli.adapters import archive
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.data import site_data
    from fedmed_cli.data.identifiers import MODES
    from fedmed_cli.data.row_index import IndexOptions
    from fedmed_cli.data.sources import Source
    from fedmed_cli.errors import InputError, UsageError
    from fedmed_cli.federation.site import accept_global
    from fedmed_cli.models import bases
    from fedmed_cli.trust.keys import signer_for
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    if site not in plan.sites.names:
        raise InputError(f"the plan has no site {site!r}", hint=f"its sites are {', '.join(plan.sites.names)}")
    if data is None and (columns or group_by):
        raise UsageError("--columns and --group-by go with --data")
    looked_for = IndexOptions(
        group_by=group_by,
        near_duplicates=o.similarity("--near-duplicates", near_duplicates),
        phi=o.choice("--phi", phi, MODES),  # type: ignore[arg-type]  # one of MODES
        max_bad=max_bad,
    )
    mapped = o.mapping("--columns", columns) if columns else None
    signer = signer_for(site, plan, load_signer(screen, key, workspace))
    choices = o.training_choices(
        max_steps=max_steps,
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_batch_tokens=max_batch_tokens,
        gradient_checkpointing=gradient_checkpointing,
        eval_steps=eval_steps,
        early_stopping_patience=early_stopping_patience,
        save_steps=save_steps,
        logging_steps=logging_steps,
        report_to=report_to,
        max_eval_samples=max_eval_samples,
    )
    with place.lock():
        if data:
            examples = site_data.file_data(place, plan, site, Source(data, mapped), looked_for, screen.say)
        else:
            examples = site_data.workspace_data(place, site)
        accepted, round_number, start = None, place.newest_round() + 1, None
        if global_adapter is not None:
            folder, number, new = accept_global(place, plan, global_adapter, require_signatures, screen.say)
            accepted, round_number, start = folder if new else None, number + 1, folder.adapter
        start = start or archive.starting_adapter(place, plan, round_number)
        local = bases.find_for_plan(plan.base, base, base_wheel, screen.say)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.federation import site as core
        from fedmed_cli.models import language_model

        screen.say(f"site {site}, round {round_number}: {len(examples.train):,} training examples")
        with step_events(screen, site) as events:
            result = core.train_local(
                place,
                plan,
                language_model.load(local, device, screen.say, screen.detail, load_in_4bit=load_in_4bit),
                site,
                examples,
                start,
                round_number,
                choices,
                accepted=accepted,
                signer=signer,
                events=events,
            )
    from fedmed_cli.cli.tables.federation import contribution_lines

    if result.replaced:
        screen.say(f"the older contribution is kept in {place.relative(result.replaced)}")
    screen.result(
        result.record.to_dict(),
        *contribution_lines(result.record),
        f"wrote {result.path}: send this folder to the coordinator",
    )
