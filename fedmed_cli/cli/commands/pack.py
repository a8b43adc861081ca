"""`fedmed pack`: one adapter folder as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def pack(
    folder: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"The file to write \[FOLDER.fedmed.tar].", show_default=False)
    ] = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Pack an adapter folder that passes the gate into one file, always with the same bytes.

    Every command that takes an adapter folder takes this file as well; 'tar xf' unpacks it without fedmed.

    Example: fedmed pack adapters/B
    """
    from fedmed_cli.adapters import gate
    from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX
    from fedmed_cli.adapters.bundle import pack as pack_files
    from fedmed_cli.errors import ConflictError, UsageError
    from fedmed_cli.federation.audit_gate import check_audit
    from fedmed_cli.records.digests import sha256_bytes
    from fedmed_cli.text import number_of_bytes
    from fedmed_cli.workspace import Workspace
    from fedmed_cli.workspace.durable import write_file

    screen, place = common.open()
    if output is not None and not output.name.endswith(BUNDLE_SUFFIX):
        raise UsageError(f"--output: expected a name that ends with {BUNDLE_SUFFIX}, found {output.name}")
    target = output or Path(folder.resolve().name + BUNDLE_SUFFIX)
    if target.exists():
        raise ConflictError(f"{target} exists already", hint="name another file with --output")
    if not place.plan_path.exists() and len(folder.resolve().parents) > 1:
        place = Workspace(folder.resolve().parents[1])  # the one whose adapters/ the folder lies in
    plan = place.read_plan() if place.plan_path.exists() else None
    passed = gate.read_from_anyone(folder, plan)
    gate.check_may_leave(passed)
    if plan is not None:
        check_audit(place, plan, passed)
    else:
        screen.say("there is no plan here: nothing says whether this may leave without an audit")
    data = pack_files(passed.files)
    write_file(target, data)
    screen.result(
        {"path": str(target), "num_bytes": len(data), "sha256": sha256_bytes(data), "adapter": passed.adapter.digest},
        f"wrote {target} ({number_of_bytes(len(data))}, sha256 {sha256_bytes(data)})",
    )
