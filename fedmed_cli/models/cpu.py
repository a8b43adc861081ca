"""The class of this CPU: it decides the number format of models, and is recorded with what was computed."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

# The best first, with what `torch.cpu.get_capabilities` must name.
CLASSES = {
    "AMX": ("amx_tile", "amx_bf16"),
    "AVX512-BF16": ("avx512_bf16",),
    "AVX512": ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"),
    "AVX2": ("avx2", "fma3"),
}

# Values of ONEDNN_MAX_CPU_ISA, by the best class that oneDNN then computes as.
_LIMITS = {
    "AVX10_1_512": "AVX512-BF16",
    "AVX512_CORE_FP16": "AVX512-BF16",
    "AVX512_CORE_BF16": "AVX512-BF16",
    "AVX512_CORE_VNNI": "AVX512",
    "AVX512_CORE": "AVX512",
    "AVX2_VNNI_2": "AVX2",
    "AVX2_VNNI": "AVX2",
    "AVX2": "AVX2",
}


def cpu_class() -> str:
    """One of CLASSES: the best that the CPU has and ONEDNN_MAX_CPU_ISA allows; else the name of its architecture."""
    names = list(CLASSES)
    limit = _LIMITS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), names[0])
    has = torch.cpu.get_capabilities()
    allowed = names[names.index(limit) :]
    return next((name for name in allowed if all(has.get(flag) for flag in CLASSES[name])), platform.machine())


def has_bfloat16() -> bool:
    """Whether products of bfloat16 are faster on this CPU than those of float32: by its kind, never by timing.

    AMX, and AMD's AVX512-BF16, are twice as fast and more. Intel's AVX512-BF16 without AMX, as virtual machines often
    have it, reaches about half of what the same cores reach in float32 (docs/benchmarks.md).
    """
    return cpu_class() == "AMX" or (cpu_class() == "AVX512-BF16" and not _is_intel())


@functools.cache
def _is_intel() -> bool:
    """Whether the CPU says that Intel made it."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = platform.processor()
    return "GenuineIntel" in about
