"""Weights of a base model with an adapter added to them, as safetensors and as GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.gguf_lora import permute
from fedmed_cli.adapters.safetensors import header_bytes, to_bfloat16, to_float32
from fedmed_cli.errors import CombineError
from fedmed_cli.models.base_files import open_weights
from fedmed_cli.models.bases import LocalBase

_COPIED = (".json", ".jinja", ".model", ".txt")


def write_merged(folder: Path, adapter: Adapter, base: LocalBase) -> None:
    """Write the model folder of base plus adapter: the base's files, each weight in its own number format."""
    for path in sorted(base.folder.iterdir()):
        if path.suffix in _COPIED and path.is_file():
            shutil.copyfile(path, folder / path.name)
    left = set(adapter.factors)
    for path in sorted(base.folder.glob("*.safetensors")):
        with open_weights(path) as (source, tensors, start), (folder / path.name).open("wb") as target:
            target.write(header_bytes(tensors))
            for name in sorted(tensors):
                info = tensors[name]
                source.seek(start + info.start)
                data = source.read(info.end - info.start)
                module = name.removesuffix(".weight")
                if module in adapter.factors:
                    left.remove(module)
                    data = _to_bytes(to_float32(memoryview(data), info) + update(adapter, module), info.dtype)
                target.write(data)
    if left:
        raise CombineError(f"the base has no weight for module {sorted(left)[0]}")


def update(adapter: Adapter, module: str) -> np.ndarray:
    """s·B·A of one module: (out, in), float32."""
    a, b = adapter.factors[module]
    product: np.ndarray = (b.astype(np.float64) @ a.astype(np.float64) * adapter.scale(module)).astype(np.float32)
    return product


def _to_bytes(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return to_bfloat16(values).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def write_merged_gguf(path: Path, adapter: Adapter, gguf_path: Path, heads: int, kv_heads: int) -> None:
    """Write a Llama's GGUF with the adapter added: changed weights as float16, all others as they are."""
    import gguf

    reader = gguf.GGUFReader(gguf_path)
    layers = 1 + max(int(module.split(".")[2]) for module in adapter.factors)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    changed = {f"{names.get_name(module)}.weight": module for module in adapter.factors}
    writer = gguf.GGUFWriter(path, "llama")
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, entry.contents(), entry.types[0], sub_type)
    for tensor in reader.tensors:
        module = changed.pop(tensor.name, None)
        if module is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        added = update(adapter, module)
        if module.endswith((".q_proj", ".k_proj")):
            added = permute(added, heads if module.endswith(".q_proj") else kv_heads)
        values = gguf.dequantize(tensor.data, tensor.tensor_type) + added
        writer.add_tensor(tensor.name, values.astype(np.float16))
    if changed:
        raise CombineError(f"the base has no weight {sorted(changed)[0]}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
