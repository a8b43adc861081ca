"""`fedmed split`: make hospitals out of one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o

DIVISION_PANEL = "How to divide"


def split(
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            help="corpus (bundled), a JSON, JSONL, CSV, TSV, Parquet or Arrow file (.gz and .zst too), a glob, a "
            r"folder, or a hub id; more than once for several files \[corpus].",
            rich_help_panel=o.DATA_PANEL,
        ),
    ] = None,
    columns: o.ColumnsOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use only the first N rows.", rich_help_panel=o.DATA_PANEL)
    ] = None,
    max_bad: o.MaxBadOption = 0.001,
    hospitals: Annotated[int, typer.Option("--hospitals", min=1, max=1000, help="Number of hospitals: A, B, C …")] = 3,
    site_names: Annotated[str | None, typer.Option("--names", help="Comma-separated names of the hospitals.")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="iid, quantity, dirichlet, pathological or column:NAME "
            r"\[dirichlet where there is a label, else iid].",
            rich_help_panel=DIVISION_PANEL,
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            "--alpha",
            min=0.001,
            help="Concentration for dirichlet and quantity; the smaller, the more the hospitals differ.",
            rich_help_panel=DIVISION_PANEL,
        ),
    ] = 0.5,
    assign: Annotated[
        str | None,
        typer.Option(
            "--assign", help="With column:NAME, values to hospitals: 'A=x,y;B=z'.", rich_help_panel=DIVISION_PANEL
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes", help="Comma-separated numbers of examples, one per hospital.", rich_help_panel=DIVISION_PANEL
        ),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option("--min-size", min=1, help="Minimum examples per hospital.", rich_help_panel=DIVISION_PANEL),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help="Label column for dirichlet and pathological; without one, topics of the texts are used.",
            rich_help_panel=DIVISION_PANEL,
        ),
    ] = None,
    labels_per_site: Annotated[
        int,
        typer.Option(
            "--labels-per-site", min=1, help="Labels per hospital, with pathological.", rich_help_panel=DIVISION_PANEL
        ),
    ] = 2,
    num_topics: Annotated[
        int,
        typer.Option(
            "--topics",
            min=2,
            max=200,
            help="Number of topics, where there is no label column.",
            rich_help_panel=DIVISION_PANEL,
        ),
    ] = 10,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            help=r"Keep rows with the same value together, such as patient_id \[corpus: focus].",
            rich_help_panel=o.LEAK_PANEL,
        ),
    ] = None,
    near_duplicates: o.NearDuplicatesOption = "0.6",
    phi: o.PhiOption = "warn",
    validation_share: Annotated[
        float,
        typer.Option("--validation-share", help="Share of each hospital's examples.", rich_help_panel=DIVISION_PANEL),
    ] = 0.1,
    coordinator_share: Annotated[
        float,
        typer.Option("--coordinator-share", help="Share of each hospital's examples.", rich_help_panel=DIVISION_PANEL),
    ] = 0.1,
    test_share: Annotated[
        float, typer.Option("--test-share", help="Share of each hospital's examples.", rich_help_panel=DIVISION_PANEL)
    ] = 0.2,
    file_format: Annotated[
        str,
        typer.Option(
            "--format", help="Format of the hospitals' files: jsonl or parquet.", rich_help_panel=o.DATA_PANEL
        ),
    ] = "jsonl",
    base: o.BaseOption = None,
    revision: o.RevisionOption = None,
    max_steps: o.MaxStepsOption = None,
    learning_rate: o.LearningRateOption = None,
    lr_scheduler_type: o.SchedulerOption = None,
    warmup_steps: o.WarmupOption = None,
    lr_scheduler_rounds: o.SchedulerRoundsOption = None,
    fedprox_mu: o.FedproxOption = None,
    max_length: o.MaxLengthOption = None,
    lora_r: o.LoraROption = None,
    lora_alpha: o.LoraAlphaOption = None,
    lora_target_modules: o.LoraTargetsOption = None,
    use_rslora: o.RsloraOption = None,
    rank_pattern: o.RankPatternOption = None,
    alpha_pattern: o.AlphaPatternOption = None,
    system_prompt: o.SystemPromptOption = None,
    seed: o.SeedOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Make hospitals out of one data set, and write the plan if there is none.

    No example, text or group is in two sets, and near-duplicates stay together as far as they are found; what the
    check of the written files found is shown and in data/split.json.

    Example: fedmed split --hospitals 3
    """
    from fedmed_cli.cli.progress import rows_progress
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.cli.tables.federation import split_table
    from fedmed_cli.data.identifiers import MODES
    from fedmed_cli.data.sources import Source
    from fedmed_cli.data.split import split as split_data
    from fedmed_cli.data.split_options import FORMATS, SplitOptions, default_names, parse_method
    from fedmed_cli.federation.plan import PlanOptions, plan_for_sites
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    assigned = o.assignment(assign) if assign else None
    source = Source(dataset or ["corpus"], o.mapping("--columns", columns) if columns else None, limit)
    method, column = parse_method(by or ("dirichlet" if source.label_column else "iid"))
    plan_options = PlanOptions(
        base=base,
        revision=revision,
        learning_rate=learning_rate,
        lr_scheduler_type=lr_scheduler_type,
        warmup_steps=warmup_steps,
        lr_scheduler_rounds=lr_scheduler_rounds,
        fedprox_mu=fedprox_mu,
        max_steps=max_steps,
        max_length=max_length,
        lora_r=lora_r,
        lora_alpha=lora_alpha,
        lora_target_modules=o.names("--lora-target-modules", lora_target_modules) if lora_target_modules else None,
        use_rslora=use_rslora,
        rank_pattern=o.pattern("--rank-pattern", rank_pattern, int),
        alpha_pattern=o.pattern("--alpha-pattern", alpha_pattern, float),
        system_prompt=system_prompt,
        seed=seed,
    )
    options = SplitOptions(
        names=o.names("--names", site_names) if site_names else tuple(assigned or default_names(hospitals)),
        method=method,
        column=column,
        assign=assigned,
        alpha=alpha,
        sizes=o.numbers("--sizes", sizes) if sizes else None,
        min_size=min_size,
        labels_per_site=labels_per_site,
        label=label or column or source.label_column,
        num_topics=num_topics,
        group_by=group_by or source.group_column,
        near_duplicates=o.similarity("--near-duplicates", near_duplicates),
        shares={"validation": validation_share, "coordinator": coordinator_share, "test": test_share},
        max_bad=max_bad,
        phi=o.choice("--phi", phi, MODES),  # type: ignore[arg-type]  # one of MODES
        file_format=o.choice("--format", file_format, FORMATS),  # type: ignore[arg-type]  # one of FORMATS
    )
    with place.lock(), rows_progress(screen, "split") as progress:
        plan = plan_for_sites(place, plan_options, options.names, screen.say)
        result = split_data(place, source, plan, options, screen.say, progress)
    screen.result(result.record.to_dict(), *split_table(place, result))
