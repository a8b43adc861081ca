"""`fedmed doctor`: whether a machine, a workspace and a hospital's data are fit for a round."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def doctor(
    site: Annotated[
        str | None, typer.Option("--site", help=r"This hospital's name in the plan \[the coordinator's machine].")
    ] = None,
    examples: o.DataOptions = o.DataOptions(),
    training: o.TrainingOptions = o.TrainingOptions(),
    max_eval_samples: Annotated[
        int, typer.Option("--max-eval-samples", min=1, help="Validation examples to measure on.")
    ] = 100,
    key: o.KeyOption = None,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Check machine, workspace, keys and data before a round, and estimate its duration from three real steps.

    Each line is PASS, WARN or FAIL, with its remedy; the exit code is 0 if none is FAIL, else that of the first
    failure. It takes the options of train-local, and changes nothing.

    Example: fedmed doctor --site B --data records.jsonl
    """
    from fedmed_cli.cli.tables.doctor import diagnosis_parts
    from fedmed_cli.errors import UsageError
    from fedmed_cli.federation.doctor import examine
    from fedmed_cli.federation.doctor.findings import Request

    if examples.data and site is None:
        raise UsageError("--data goes with --site")
    columns, looked_for = examples.parsed()
    screen, place = common.open()
    request = Request(
        site,
        tuple(examples.data or ()),
        columns,
        looked_for,
        training.site_settings(max_eval_samples),
        device,
        training.load_in_4bit,
        base,
        key,
    )
    with screen.progress("checking") as update:
        found = examine(place, request, lambda name: update(0, 0, name))
    screen.result(found.to_dict(), *diagnosis_parts(found))
    if found.exit_code:
        raise typer.Exit(found.exit_code)
