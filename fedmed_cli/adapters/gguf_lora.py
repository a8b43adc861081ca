"""An adapter as llama.cpp takes it: one GGUF file with one alpha for all modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import CombineError

ARCHITECTURE = "llama"
MODEL_TYPES = ("llama", "mistral")  # of transformers, that llama.cpp knows as ARCHITECTURE


def write_lora(path: Path, adapter: Adapter, heads: int, kv_heads: int) -> None:
    """Write a Llama's adapter for llama.cpp; `heads` and `kv_heads` are the base's numbers of attention heads.

    llama.cpp scales every module by alpha / r with one alpha and the r of its factors (llama-adapter.h). So alpha is
    the adapter's `r`, and what else each module is scaled by is folded into its B, which serves rsLoRA and
    patterns of rank and alpha alike. Rows of q and k lie as llama.cpp's converter lays the weights'. CombineError
    where a module has no name in llama.cpp.
    """
    import gguf

    layers = 1 + max(int(module.split(".")[2]) for module in adapter.factors if module.startswith("model.layers."))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter.r))
    for module, (a, b) in adapter.factors.items():
        name = names.get_name(module)
        if name is None:
            raise CombineError(f"llama.cpp has no name for module {module}")
        folded = b * np.float32(adapter.scale(module) * adapter.rank(module) / adapter.r)
        if module.endswith((".q_proj", ".k_proj")):
            folded = permute(folded, heads if module.endswith(".q_proj") else kv_heads)
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a, dtype=np.float32))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(folded, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * head_dim, columns) as llama.cpp wants them: rotary pairs beside each other."""
    count, columns = rows.shape
    return rows.reshape(heads, 2, count // heads // 2, columns).swapaxes(1, 2).reshape(count, columns)
