"""Whether a GGUF file is the plan's base model, as far as a file whose weights were rounded can show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.adapters.gguf_lora import ARCHITECTURE
from fedmed_cli.adapters.safetensors import to_float32
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.models.base_files import open_weights
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.tokenizer import load_tokenizer


def check_gguf(path: Path, base: LocalBase) -> str:
    """Compare a GGUF file with the base model in `base.folder`; a sentence that says what was compared.

    Shapes, vocabulary and the norms' weights, which no quantisation rounds, must be the same. InputError where the
    file is not a GGUF, CombineError where it is of another model.
    """
    import gguf

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        tokens = reader.fields["tokenizer.ggml.tokens"].contents()
        layers = int(base.config["num_hidden_layers"])
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError):
        raise InputError(f"{path}: is not a readable GGUF file of a model") from None
    if architecture != ARCHITECTURE:
        raise CombineError(f"{path}: expected architecture {ARCHITECTURE}, found {str(architecture)[:40]!a}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for module, shape in base.base.modules.items():
        tensor = tensors.get(f"{names.get_name(module)}.weight")
        found = None if tensor is None else tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise CombineError(f"{path}: {module} of the plan's base is {shape}, found {found}")
    vocabulary = load_tokenizer(base.folder).get_vocab()
    if not isinstance(tokens, list) or any(
        number >= len(tokens) or tokens[number] != token for token, number in vocabulary.items()
    ):
        raise CombineError(f"{path}: its vocabulary is not that of the plan's base")
    compared = 0
    for name, values in _norms(base.folder):
        tensor = tensors.get(f"{names.get_name(name.removesuffix('.weight'))}.weight")
        if tensor is None or tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            continue
        if not np.array_equal(np.asarray(tensor.data).reshape(-1), values):
            raise CombineError(f"{path}: {name} is not that of the plan's base")
        compared += 1
    if not compared:
        raise CombineError(f"{path}: none of its norms can be compared with the plan's base")
    return (
        f"{path.name} has the shapes, the vocabulary and {compared} norm weights of {base.base.name}; "
        "its other weights are rounded and cannot be compared"
    )


def _norms(folder: Path) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Every tensor of one dimension in a model folder, as float32."""
    result = []
    for path in sorted(folder.glob("*.safetensors")):
        with open_weights(path) as (file, tensors, start):
            for name, info in tensors.items():
                if len(info.shape) == 1 and info.dtype in ("F32", "F16", "BF16"):
                    file.seek(start + info.start)
                    result.append((name, to_float32(memoryview(file.read(info.end - info.start)), info)))
    return result
