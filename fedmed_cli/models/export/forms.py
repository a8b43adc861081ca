"""The forms of an export: what each writes, who tries it here, and how it is used."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.adapters.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter
from fedmed_cli.adapters.gguf_lora import write_lora
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.engines.llama_cpp import LlamaCpp, heads_of
from fedmed_cli.models.export.merging import write_merged, write_merged_gguf
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.plan import Prompt

SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
ADAPTER_GGUF, BASE_GGUF, MODEL_GGUF = "adapter.gguf", "base.gguf", "model.gguf"

# Log-probabilities of the answers' tokens, one row after the other.
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Source:
    """What an export is made of. `lm` has the base under PEFT, the reference; `gguf` is a file of it for llama.cpp."""

    adapter: Adapter
    base: LocalBase
    prompt: Prompt
    lm: LanguageModel
    gguf: Path | None
    is_bundled: bool

    def need_gguf(self) -> Path:
        if self.gguf is None:
            raise UsageError(
                f"there is no GGUF file of {self.base.base.name} to try the adapter on", hint="name one with --gguf"
            )
        return self.gguf


@dataclass(frozen=True)
class Form:
    """`write` fills a folder; `measure` has its consumer give the values with the adapter, and without it."""

    what: str
    write: Callable[[Path, Source], None]
    measure: Callable[[Path, Source, Sequence[Encoded]], tuple[Values, Values]]
    use: Callable[[Source], str]
    consumer: str  # the distribution whose version is noted
    checked: str
    not_checked: str


def log_probabilities(model: Any, items: Sequence[Encoded]) -> Values:
    """Of the supervised tokens, by a model of transformers."""
    import torch

    rows = []
    for item in items:
        with torch.inference_mode():
            ids = torch.tensor([item.ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, item.num_prompt - 1 : -1].float()
            shares = torch.log_softmax(logits, -1).gather(1, ids[0, item.num_prompt :, None])
        rows.append(shares[:, 0].cpu().numpy())
    return np.concatenate(rows)


def _by_llama_cpp(engine: LlamaCpp, items: Sequence[Encoded], adapter: Adapter | None) -> Values:
    return np.concatenate([engine.log_probabilities(item.ids, item.num_prompt, adapter) for item in items])


def _write_gguf(folder: Path, source: Source) -> None:
    source.need_gguf()
    write_lora(folder / ADAPTER_GGUF, source.adapter, *heads_of(source.base.config))


def _measure_gguf(folder: Path, source: Source, items: Sequence[Encoded]) -> tuple[Values, Values]:
    written = {source.adapter.digest: folder / ADAPTER_GGUF}
    with closing(LlamaCpp(source.need_gguf(), source.base, lora_files=written)) as engine:
        engine.prepare([source.adapter])
        return _by_llama_cpp(engine, items, source.adapter), _by_llama_cpp(engine, items, None)


def _write_ollama(folder: Path, source: Source) -> None:
    _write_gguf(folder, source)
    shutil.copyfile(source.need_gguf(), folder / BASE_GGUF)
    lines = [f"FROM ./{BASE_GGUF}", f"ADAPTER ./{ADAPTER_GGUF}", "PARAMETER temperature 0"]
    if source.is_bundled:  # ChatML; from other files Ollama takes what their own template tells it
        turns = (
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        )
        lines += [f'TEMPLATE """{turns}"""', 'PARAMETER stop "<|im_end|>"']
    if '"""' in source.prompt.system:
        raise InputError('the plan\'s system prompt holds """, which a Modelfile cannot')
    if source.prompt.system:
        lines.append(f'SYSTEM """{source.prompt.system}"""')
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_model(folder: Path, source: Source) -> None:
    write_merged(folder, source.adapter, source.base)


def _measure_model(folder: Path, source: Source, items: Sequence[Encoded]) -> tuple[Values, Values]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = next(source.lm.model.parameters()).dtype
    source.lm.use(None)
    plain = log_probabilities(source.lm.model, items)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    model.to(torch.device(source.lm.device)).eval()
    return log_probabilities(model, items), plain


def _write_model_gguf(folder: Path, source: Source) -> None:
    if not source.is_bundled:
        raise UsageError("--to merged-gguf is for the embedded base", hint="use --to gguf, or convert --to merged")
    write_merged_gguf(folder / MODEL_GGUF, source.adapter, source.need_gguf(), *heads_of(source.base.config))


def _measure_model_gguf(folder: Path, source: Source, items: Sequence[Encoded]) -> tuple[Values, Values]:
    values = []
    for path in (folder / MODEL_GGUF, source.need_gguf()):
        with closing(LlamaCpp(path, source.base)) as engine:
            engine.prepare([])
            values.append(_by_llama_cpp(engine, items, None))
    return values[0], values[1]


def server_adapter(adapter: Adapter) -> Adapter:
    """The same adapter at one rank that servers allow, alpha equal to it: scaling is in B, new components are zero."""
    rank = next((rank for rank in SERVER_RANKS if rank >= adapter.max_rank), None)
    if rank is None:
        raise InputError(f"the adapter's rank is {adapter.max_rank}, and vLLM takes at most {SERVER_RANKS[-1]}")
    factors = {}
    for module, (a, b) in adapter.factors.items():
        missing = rank - len(a)
        scaled = b * np.float32(adapter.scale(module))
        factors[module] = (
            np.pad(a, ((0, missing), (0, 0))).astype(np.float32),
            np.pad(scaled, ((0, 0), (0, missing))).astype(np.float32),
        )
    return replace(adapter, r=rank, alpha=float(rank), factors=factors, use_rslora=False, ranks={}, alphas={})


def _write_peft(folder: Path, source: Source) -> None:
    adapter = server_adapter(source.adapter)
    (folder / CONFIG_NAME).write_text(json.dumps(adapter.config, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS_NAME).write_bytes(adapter.weights_bytes)


def _measure_peft(folder: Path, source: Source, items: Sequence[Encoded]) -> tuple[Values, Values]:
    from fedmed_cli.models.peft_offline import peft

    plain_model = source.lm.take_off()
    plain = log_probabilities(plain_model, items)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        loaded = peft.PeftModel.from_pretrained(plain_model, str(folder)).eval()
    values = log_probabilities(loaded, items)
    loaded.unload()
    return values, plain


def _use_gguf(source: Source) -> str:
    return f"llama-server --model BASE.gguf --lora {ADAPTER_GGUF}   # BASE.gguf: {source.base.base.name}"


def _use_ollama(source: Source) -> str:
    return "ollama create fedmed -f Modelfile\nollama run fedmed"


def _use_model(source: Source) -> str:
    return "vllm serve .\npython -m sglang.launch_server --model-path .\ntransformers serve .\nmlx_lm.server --model ."


def _use_model_gguf(source: Source) -> str:
    return f"llama-server --model {MODEL_GGUF}"


def _use_peft(source: Source) -> str:
    rank = server_adapter(source.adapter).r
    return (
        f"vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules fedmed=.\n"
        "python -m sglang.launch_server --model-path BASE --enable-lora --lora-paths fedmed=.\n"
        f"# BASE: the folder of {source.base.base.name}"
    )


_BY_LLAMA_CPP = "llama.cpp loaded it and gave the answers' probabilities"
FORMS: dict[str, Form] = {
    "gguf": Form(
        "an adapter for llama.cpp", _write_gguf, _measure_gguf, _use_gguf, "xllamacpp", _BY_LLAMA_CPP, "nothing"
    ),
    "ollama": Form(
        "base, adapter and Modelfile for Ollama",
        _write_ollama,
        _measure_gguf,
        _use_ollama,
        "xllamacpp",
        f"{_BY_LLAMA_CPP}, on the same base file",
        "Ollama itself, and how it reads the Modelfile and its template",
    ),
    "merged": Form(
        "base plus adapter as safetensors",
        _write_model,
        _measure_model,
        _use_model,
        "transformers",
        "transformers loaded it and gave the answers' probabilities",
        "vLLM, SGLang and MLX themselves",
    ),
    "merged-gguf": Form(
        "the embedded base plus adapter for llama.cpp",
        _write_model_gguf,
        _measure_model_gguf,
        _use_model_gguf,
        "xllamacpp",
        _BY_LLAMA_CPP,
        "Ollama and other programs that read GGUF",
    ),
    "vllm": Form(
        "a PEFT adapter of a rank and alpha that vLLM and SGLang take",
        _write_peft,
        _measure_peft,
        _use_peft,
        "peft",
        "PEFT loaded it and gave the answers' probabilities",
        "vLLM and SGLang themselves",
    ),
}


def version_of(form: Form) -> str:
    """The consumer that tried it, with its version."""
    return f"{form.consumer} {importlib.metadata.version(form.consumer)}"
