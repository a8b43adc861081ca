"""What a training runs on: layers compiled by torch's inductor where that repays itself, and a heap that fits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator

import torch

from fedmed_cli.attention import can_pack
from fedmed_cli.models import LanguageModel

REPAID_TOKENS = 60_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

_FAILURES = (RuntimeError, OSError, ImportError, AttributeError, TypeError, ValueError, AssertionError)


def settle_heap() -> None:
    """Have glibc keep the memory that a step frees for the next one, and give large blocks back at once.

    By itself it moves the bounds as it goes, returns the heap to the system after each step, and fragments: steps
    then take longer and the peak varies from run to run (docs/training.md). Elsewhere than on glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def compiler() -> str | None:
    """The C++ compiler that inductor would use on a CPU."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def pays_off(lm: LanguageModel, num_tokens: int) -> bool:
    """Whether to compile a training over `num_tokens` tokens by default; never by timing.

    On AVX512-BF16 cores compiled layers save most of what transformers' small operations cost, after 20 to 35 s.
    Where a model's attention is computed here (attention.py), training is as fast without; in float32 on AVX2
    compiling saved nothing (docs/benchmarks.md).
    """
    return (
        lm.device.type == "cpu"
        and lm.dtype == torch.bfloat16
        and not lm.quantized
        and num_tokens >= REPAID_TOKENS
        and not can_pack(lm)
        and compiler() is not None
    )


@contextlib.contextmanager
def compiled(lm: LanguageModel, step: Callable[[], object], say: Callable[[str], None]) -> Iterator[bool]:
    """Compile each decoder layer for the time of the block; yields whether that worked.

    `step` is one forward and backward pass on a fixed batch: it decides for which shapes kernels are made,
    so that they depend neither on the data nor on what ran before. Where compiling fails, `say` is told and
    the block runs on torch's own kernels.
    """
    layers = lm.layers()
    torch._dynamo.reset()
    try:
        if not layers:
            raise RuntimeError("the model has no list of decoder layers")
        for layer in layers:
            layer.compile(dynamic=True)
        step()
    except _FAILURES as error:
        uncompile(lm)
        say(f"compiling does not work here ({type(error).__name__}), so training runs on torch's own kernels")
        yield False
        return
    try:
        yield True
    finally:
        uncompile(lm)


def uncompile(lm: LanguageModel) -> None:
    for layer in lm.layers():
        layer._compiled_call_impl = None
    torch._dynamo.reset()


@contextlib.contextmanager
def eager(lm: LanguageModel) -> Iterator[None]:
    """Run on torch's own kernels for the time of the block: measurements never depend on compiled ones."""
    layers = lm.layers()
    kept = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in zip(layers, kept, strict=True):
            layer._compiled_call_impl = call
