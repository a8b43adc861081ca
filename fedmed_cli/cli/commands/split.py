"""`fedmed split`: make hospitals out of one data set."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse

_division = functools.partial(o.option, panel="How to divide", env=False)


def split(
    dataset: Annotated[
        list[str] | None,
        o.data_option(
            "--dataset",
            "corpus (bundled), a JSON, JSONL, CSV, TSV, Parquet or Arrow file (.gz and .zst too), a glob, a "
            "folder, or a hub id; more than once for several files [corpus].",
        ),
    ] = None,
    columns: o.ColumnsOption = None,
    limit: Annotated[int | None, o.data_option("--limit", "Use only the first N rows.", min=1)] = None,
    max_bad: o.MaxBadOption = 0.001,
    hospitals: Annotated[int, typer.Option("--hospitals", min=1, max=1000, help="Number of hospitals: A, B, C …")] = 3,
    site_names: Annotated[str | None, typer.Option("--names", help="Comma-separated names of the hospitals.")] = None,
    by: Annotated[
        str | None,
        _division(
            "--by",
            "iid, quantity, dirichlet, pathological or column:NAME [dirichlet where there is a label, else iid].",
        ),
    ] = None,
    alpha: Annotated[
        float,
        _division(
            "--alpha",
            "Concentration for dirichlet and quantity; smaller values make hospitals differ more.",
            min=0.001,
        ),
    ] = 0.5,
    assign: Annotated[
        str | None, _division("--assign", "With column:NAME, which hospital gets which values: 'A=x,y;B=z'.")
    ] = None,
    sizes: Annotated[str | None, _division("--sizes", "Comma-separated numbers of examples, one per hospital.")] = None,
    min_size: Annotated[int | None, _division("--min-size", "Minimum examples per hospital.", min=1)] = None,
    label: Annotated[
        str | None,
        _division("--label", "Label column for dirichlet and pathological; without one, topics of the texts are used."),
    ] = None,
    labels_per_site: Annotated[
        int, _division("--labels-per-site", "Labels per hospital, with pathological.", min=1)
    ] = 2,
    num_topics: Annotated[
        int, _division("--topics", "Number of topics, where there is no label column.", min=2, max=200)
    ] = 10,
    group_by: Annotated[
        str | None,
        o.leak_option(
            "--group-by", "Keep rows with the same value of this column together, such as patient_id [corpus: focus]."
        ),
    ] = None,
    near_duplicates: o.NearDuplicatesOption = "0.6",
    phi: o.PhiOption = "warn",
    validation_share: Annotated[
        float, _division("--validation-share", "Share of a hospital's examples for validation.")
    ] = 0.1,
    coordinator_share: Annotated[float, _division("--coordinator-share", "Share for the coordinator.")] = 0.1,
    test_share: Annotated[float, _division("--test-share", "Share for testing.")] = 0.2,
    file_format: Annotated[
        str, o.data_option("--format", "Format of the hospitals' files: jsonl or parquet.")
    ] = "jsonl",
    plan: o.PlanOptions = o.PlanOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Make hospitals out of one data set, and write the plan if there is none.

    No example, text or group is in two sets, and near-duplicates that are found stay together. The written files are
    checked again; the result is shown, and kept in data/split.json.

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
