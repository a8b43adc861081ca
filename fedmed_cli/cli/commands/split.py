"""`fedmed split`: make hospitals out of one data set."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse

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
    plan: o.PlanOptions = o.PlanOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Make hospitals out of one data set, and write the plan if there is none.

    No example, text or group is in two sets, and near-duplicates stay together as far as they are found; what the
    check of the written files found is shown and in data/split.json.

    Example: fedmed split --hospitals 3
    """
    from fedmed_cli.cli.progress import rows_progress
    from fedmed_cli.data.identifiers import MODES
    from fedmed_cli.data.sources import Source
    from fedmed_cli.data.split_options import FORMATS, SplitOptions, default_names, parse_method
    from fedmed_cli.federation import steps
    from fedmed_cli.records.digests import short
    from fedmed_cli.reporting.tables.split import split_parts

    screen, place = common.open()
    assigned = parse.assignment(assign) if assign else None
    source = Source(dataset or ["corpus"], parse.mapping("--columns", columns) if columns else None, limit)
    method, column = parse_method(by or ("dirichlet" if source.label_column else "iid"))
    options = SplitOptions(
        names=parse.names("--names", site_names) if site_names else tuple(assigned or default_names(hospitals)),
        method=method,
        column=column,
        assign=assigned,
        alpha=alpha,
        sizes=parse.numbers("--sizes", sizes) if sizes else None,
        min_size=min_size,
        labels_per_site=labels_per_site,
        label=label,
        num_topics=num_topics,
        group_by=group_by,
        near_duplicates=parse.similarity("--near-duplicates", near_duplicates),
        shares={"validation": validation_share, "coordinator": coordinator_share, "test": test_share},
        max_bad=max_bad,
        phi=parse.choice("--phi", phi, MODES),
        file_format=parse.choice("--format", file_format, FORMATS),
    )
    with rows_progress(screen, "split") as progress:
        result = steps.split(place, source, options, plan.parsed(), say=screen.say, progress=progress)
    verb = "wrote" if result.wrote_plan else "kept"
    next_step = f"{verb} {place.plan_path} (plan {short(result.plan.digest)}); next: fedmed round"
    screen.result(result.record.to_dict(), *split_parts(result.record), next_step)
