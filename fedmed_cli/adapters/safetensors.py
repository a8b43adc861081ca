"""The safetensors format in numpy: a strict header parser, and a writer whose bytes depend only on the tensors.

Format: an unsigned 64-bit little-endian header length, the header (JSON), then the tensors' bytes.
The safetensors library accepts headers that a hostile file may use (duplicate keys, gaps, huge shapes,
unprintable names), so every foreign header is parsed here.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from fedmed_cli.errors import InputError
from fedmed_cli.records.codec import describe_value, parse_json

MAX_HEADER_BYTES = 1_000_000
LEAST_ENTRY_BYTES = 50
MAX_METADATA_BYTES = 20_000
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One header entry; `start` and `end` are byte offsets into the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(
    head: bytes | memoryview, file_bytes: int, name: str, max_header: int = MAX_HEADER_BYTES
) -> tuple[Mapping[str, TensorInfo], int]:
    """Check a file's header and return its tensors by name and the offset of the data section.

    `head` holds at least the header, `file_bytes` is the size of the whole file, `name` is how errors call
    it. InputError unless the tensors fill the data section without a gap or an overlap.
    """
    if file_bytes < 8 or len(head) < 8:
        raise InputError(f"{name}: is not a safetensors file: it has {file_bytes} bytes, fewer than 8")
    (length,) = struct.unpack("<Q", head[:8])
    if length > max_header:
        raise InputError(f"{name}: expected a header of at most {max_header:,} bytes, found {length:,}")
    data_bytes = file_bytes - 8 - length
    if data_bytes < 0:
        raise InputError(f"{name}: is truncated: its header needs {8 + length:,} bytes, the file has {file_bytes:,}")
    try:
        tensors = _parse_tensors(bytes(head[8 : 8 + length]), data_bytes, max_header)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from None
    return tensors, 8 + length


@functools.lru_cache(maxsize=4)
def _parse_tensors(text: bytes, data_bytes: int, max_header: int) -> Mapping[str, TensorInfo]:
    """A header's tensors by name. Remembered, for the adapters of one federation have the same headers."""
    if not text.startswith(b"{"):
        raise InputError("header: expected an object, found another first byte")
    entries = parse_json(text, "header", max_header)
    if not isinstance(entries, dict):
        raise InputError(f"header: expected an object, found {type(entries).__name__}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("header: __metadata__ must map names to texts")
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
        raise InputError(f"header: __metadata__ holds more than {MAX_METADATA_BYTES:,} characters")
    if len(entries) > max_header // LEAST_ENTRY_BYTES:
        raise InputError(
            f"header: expected at most {max_header // LEAST_ENTRY_BYTES:,} tensors, found {len(entries):,}"
        )
    tensors = {key: _parse_entry(key, value) for key, value in entries.items()}
    position = 0
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            kind = "a gap" if info.start > position else "an overlap"
            raise InputError(f"header: {kind} before tensor {key!r} at byte {info.start}")
        position = info.end
    if position > data_bytes:
        raise InputError(f"is truncated: its tensors need {position:,} bytes, the file has {data_bytes:,}")
    if position < data_bytes:
        raise InputError(f"has {data_bytes - position:,} bytes after its last tensor")
    return MappingProxyType(tensors)


def _parse_entry(key: str, value: Any) -> TensorInfo:
    if not key.isascii() or not key.isprintable() or not 0 < len(key) <= 256:
        raise InputError(f"header: tensor name {key[:80]!a} is not 1 to 256 printable ASCII characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"header: tensor {key!r} must have only dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InputError(f"header: tensor {key!r} has an unknown dtype {describe_value(dtype)}")
    for part, what in ((shape, "shape"), (offsets, "data_offsets")):
        if not isinstance(part, list) or len(part) > 8 or any(type(x) is not int or not 0 <= x < 2**48 for x in part):
            raise InputError(f"header: tensor {key!r} has an unusable {what}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise InputError(f"header: tensor {key!r} has offsets that do not fit its shape {shape} of {dtype}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def to_float32(data: memoryview, info: TensorInfo) -> np.ndarray:
    """The float32 array of a tensor's bytes (F32, F16 or BF16); a copy where it must be converted."""
    if info.dtype == "F32":
        array = np.frombuffer(data, dtype="<f4")
    elif info.dtype == "F16":
        array = np.frombuffer(data, dtype="<f2").astype(np.float32)
    elif info.dtype == "BF16":
        array = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        raise ValueError(f"{info.dtype} holds no weights of a LoRA adapter")
    return array.reshape(info.shape)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round finite float32 to bfloat16, to nearest, ties to even; the bits as uint16."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def header_bytes(tensors: Mapping[str, TensorInfo]) -> bytes:
    """The length and header with which `serialize` starts a file of these tensors, sorted by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in sorted(tensors):
        info = tensors[name]
        end = position + info.end - info.start
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def serialize(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of float32 arrays (uint16 arrays are stored as bfloat16 bits), sorted by name."""
    infos, parts = {}, []
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        dtype = {"float32": "F32", "uint16": "BF16"}[array.dtype.name]
        infos[name] = TensorInfo(dtype, array.shape, 0, array.nbytes)
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B"))
    return b"".join([header_bytes(infos), *parts])
