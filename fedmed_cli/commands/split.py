"""`fedmed split`: make hospitals out of one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli import options as o


def split(
    dataset: Annotated[
        str, typer.Option("--dataset", help="corpus (bundled), a JSON, JSONL, CSV, TSV or Parquet file, or a hub id.")
    ] = "corpus",
    hospitals: Annotated[int, typer.Option("--hospitals", min=1, max=1000, help="How many: A, B, C …")] = 3,
    site_names: Annotated[str | None, typer.Option("--names", help="The hospitals' names, by comma.")] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="iid, dirichlet or column:NAME [dirichlet where there is a label, else iid]."),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", min=0.001, help="Dirichlet: small is unlike, large alike.")] = 0.5,
    assign: Annotated[
        str | None, typer.Option("--assign", help="With column:NAME, values to hospitals: 'A=x,y;B=z'.")
    ] = None,
    sizes: Annotated[str | None, typer.Option("--sizes", help="Examples of each hospital, by comma.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="The label column of dirichlet and of the table.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="Keep rows with the same value together [corpus: focus].")
    ] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="question=Q,answer=A for other names.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take the first rows only.")] = None,
    validation_share: Annotated[float, typer.Option("--validation-share", help="Of each hospital.")] = 0.1,
    coordinator_share: Annotated[float, typer.Option("--coordinator-share", help="Of each hospital.")] = 0.1,
    test_share: Annotated[float, typer.Option("--test-share", help="Of each hospital.")] = 0.2,
    base: o.BaseOption = None,
    revision: o.RevisionOption = None,
    max_steps: o.MaxStepsOption = None,
    learning_rate: o.LearningRateOption = None,
    lr_scheduler_type: o.SchedulerOption = None,
    warmup_steps: o.WarmupOption = None,
    max_length: o.MaxLengthOption = None,
    lora_r: o.LoraROption = None,
    lora_alpha: o.LoraAlphaOption = None,
    lora_target_modules: o.LoraTargetsOption = None,
    system_prompt: o.SystemPromptOption = None,
    seed: o.SeedOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Make hospitals out of one data set, and write the plan if there is none.

    No example, text or group is in two sets; the check's result is in data/split.json.

    Example: fedmed split --hospitals 3
    """
    from fedmed_cli.examples import read_dataset
    from fedmed_cli.plans import PlanOptions
    from fedmed_cli.screen import Screen
    from fedmed_cli.splitting import default_names
    from fedmed_cli.splitting import split as run
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    assigned = o.assignment(assign) if assign else None
    chosen = o.names("--names", site_names) if site_names else tuple(assigned or default_names(hospitals))
    plan_options = PlanOptions(
        base=base,
        revision=revision,
        learning_rate=learning_rate,
        lr_scheduler_type=lr_scheduler_type,
        warmup_steps=warmup_steps,
        max_steps=max_steps,
        max_length=max_length,
        lora_r=lora_r,
        lora_alpha=lora_alpha,
        lora_target_modules=o.names("--lora-target-modules", lora_target_modules) if lora_target_modules else None,
        system_prompt=system_prompt,
        seed=seed,
    )
    data = read_dataset(dataset, o.mapping("--columns", columns) if columns else None, limit)
    with place.lock():
        result = run(
            place,
            data,
            plan_options,
            names=chosen,
            by=by,
            assign=assigned,
            alpha=alpha,
            sizes=o.numbers("--sizes", sizes) if sizes else None,
            label=label,
            group_by=group_by,
            shares={"validation": validation_share, "coordinator": coordinator_share, "test": test_share},
            limit=limit,
            say=screen.say,
        )
    from fedmed_cli.commands.tables import split_table

    screen.result(result.record.to_dict(), *split_table(place, result))
