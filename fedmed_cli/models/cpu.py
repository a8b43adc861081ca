"""The class of this CPU: it decides the number format of models, and is recorded with what was computed."""

from __future__ import annotations

import os
import platform

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
    """Whether this CPU has instructions for products of bfloat16: by its class, never by timing."""
    return cpu_class() in ("AMX", "AVX512-BF16")
