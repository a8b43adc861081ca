"""`fedmed export`: an adapter in the form that another program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def export(
    adapter: Annotated[str, typer.Argument(help="global, a site, or an adapter's folder.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder.")],
    to: Annotated[str, typer.Option("--to", help="gguf, ollama, merged, merged-gguf or vllm.")],
    gguf: o.GgufOption = None,
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Convert an adapter for llama.cpp, Ollama, vLLM, SGLang, MLX or transformers, and check that it works.

    The target program computes the log-probabilities of 20 bundled answers, which must match PEFT's, not the base's.

    Example: fedmed export global --to ollama exported
    """
    from fedmed_cli.adapters import archive
    from fedmed_cli.adapters.folder import PersonalFolder
    from fedmed_cli.cli import parse
    from fedmed_cli.errors import ConflictError
    from fedmed_cli.models.export.open_source import FORM_NAMES, open_source
    from fedmed_cli.text import number_of_bytes

    parse.choice("--to", to, FORM_NAMES)
    screen, place = common.open()
    if target.exists():
        raise ConflictError(f"{target} exists already", hint="name another folder")
    plan = place.read_plan()
    folder = archive.find_folder(place, plan, adapter)
    source = open_source(folder.adapter, plan, model.base_model(screen), to, gguf)

    from fedmed_cli.models.export.export import export as export_adapter

    record = export_adapter(source, to, folder, plan, target, screen.say)
    found = record.comparison
    private = "; it does not leave the hospital" if isinstance(folder, PersonalFolder) else ""
    size = sum(path.stat().st_size for path in target.iterdir())
    screen.result(
        record.to_dict() | {"path": str(target)},
        f"wrote {target} ({number_of_bytes(size)}): {record.checked}" + private,
        f"{found.num_tokens} tokens of {found.num_answers} answers beside PEFT in {found.reference_dtype}: "
        f"mean difference {found.mean_difference:+.4f}, largest {found.largest_difference:.4f} nats; the adapter "
        f"changes a token by {found.effect:.4f}, the export by {found.effect_found:.4f} (slope {found.slope:.2f})",
        f"not checked: {record.not_checked}",
    )
