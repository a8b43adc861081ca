"""What an export is made of, found and checked before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import MachineError, UsageError
from fedmed_cli.models import bundled_base
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.models.engines import llama_cpp
from fedmed_cli.models.engines.choose import find_gguf
from fedmed_cli.records.plan import Plan

if TYPE_CHECKING:
    from fedmed_cli.models.export.forms import Source

FORM_NAMES = ("gguf", "ollama", "merged", "merged-gguf", "vllm")
_OF_LLAMA_CPP = ("gguf", "ollama", "merged-gguf")


def open_source(adapter: Adapter, plan: Plan, model: BaseModel, form: str, gguf: Path | None) -> Source:
    """The adapter with the base model in memory. UsageError or MachineError where the form cannot be tried here."""
    local = model.find(plan.base)
    is_bundled = plan.base.fingerprint == bundled_base.BASE.fingerprint
    if form not in _OF_LLAMA_CPP:
        if gguf is not None:
            raise UsageError(f"--gguf goes with --to {', '.join(_OF_LLAMA_CPP)}")
    elif (fault := llama_cpp.find_fault(local)) is not None:
        raise MachineError(f"--to {form} cannot be tried here: {fault}")
    elif gguf is not None or is_bundled:
        gguf = find_gguf(model, local, gguf)
    from fedmed_cli.models.export.forms import Source

    return Source(adapter, local, plan.prompt, model.load(plan.base), gguf, is_bundled)
