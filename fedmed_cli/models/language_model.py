"""Language models in memory: load a base once, put adapters on it, say which kernels it runs on."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers

from fedmed_cli.adapters.adapter import PREFIX, Adapter
from fedmed_cli.errors import CombineError, InputError, MachineError
from fedmed_cli.events import Say
from fedmed_cli.models import cpu
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.fast_path import FastPath, decide
from fedmed_cli.models.frozen import FrozenMatrices
from fedmed_cli.models.peft_offline import peft
from fedmed_cli.records.measures import Run


def choose_device(device: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "mps"; MachineError where it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: torch finds no CUDA device", hint="use --device auto or cpu")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise MachineError("--device mps: torch finds no Apple GPU", hint="use --device auto or cpu")
    return torch.device(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively: by its flags, never by timing."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu.has_bfloat16()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has no type of its own for that on a CPU."""
    words = ("can't allocate memory", "not enough memory")  # Linux and macOS, Windows
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in words)


@dataclass
class LanguageModel:
    """A base model with at most one adapter on it at a time. `load` makes one; adapters come as factors.

    `fast_path` says which of fedmed's own operations apply to it. While they are in place, `matrices` has its
    frozen matrices, and `packs` says whether the examples of a forward pass lie end to end in one row.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    base: LocalBase
    quantized: bool = False
    plain_head: bool = False
    packs: bool = False
    matrices: FrozenMatrices | None = None
    _slots: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _active: str | None = None

    @property
    def causal(self) -> Any:
        """The model as transformers made it, whether or not an adapter is on it."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

    @property
    def decoder(self) -> Any:
        """The model without its output head: token ids to hidden states."""
        return self.causal.base_model

    @property
    def head(self) -> torch.nn.Linear | None:
        """The output head where logits are its frozen matrix times the decoder's hidden states, else None."""
        head = self.causal.get_output_embeddings() if self.plain_head else None
        return head if type(head) is torch.nn.Linear else None

    @functools.cached_property
    def fast_path(self) -> FastPath:
        """Which of fedmed's own operations apply to this model, tried when first asked for."""
        return decide(self.decoder, self.device)

    def use(self, adapter: Adapter | None) -> None:
        """Put `adapter` on the base (None: the plain base). CombineError where it does not fit."""
        if adapter is None:
            if self._slots:
                self.model.base_model.disable_adapter_layers()
            self._active = None
            return
        key = (adapter.targets, *((module, adapter.rank(module), adapter.scale(module)) for module in adapter.factors))
        if key not in self._slots:
            self._slots[key] = self._add_slot(adapter)
        name = self._slots[key]
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(name)
        parameters = self._parameters(name)
        wanted = {f"{module}.lora_{factor}" for module in adapter.factors for factor in "AB"}
        if set(parameters) != wanted:
            odd = sorted(set(parameters) ^ wanted)[0]
            raise CombineError(f"the adapter does not fit base model {self.base.base.name}: module {odd!r}")
        with torch.no_grad():
            for module, (a, b) in adapter.factors.items():
                scaling = self.causal.get_submodule(module).scaling[name]
                if not math.isclose(scaling, adapter.scale(module)):
                    raise CombineError(f"PEFT gives {module} the scaling {scaling}, expected {adapter.scale(module)}")
                for factor, values in (("A", a), ("B", b)):
                    parameter = parameters[f"{module}.lora_{factor}"]
                    if tuple(parameter.shape) != values.shape:
                        raise CombineError(
                            f"the adapter does not fit base model {self.base.base.name}: {module} wants "
                            f"{tuple(parameter.shape)}, found {values.shape}"
                        )
                    parameter.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
        self._active = name

    def take_off(self) -> Any:
        """Remove every adapter and give the base model as transformers loaded it, its weights untouched."""
        if self._slots:
            self.model = self.model.unload()
            self._slots.clear()
            self._active = None
        return self.model

    def _add_slot(self, adapter: Adapter) -> str:
        name = f"slot{len(self._slots)}"
        config = peft.LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,  # PEFT divides by r, fractions are fine
            use_rslora=adapter.use_rslora,
            rank_pattern=adapter.rank_pattern,
            alpha_pattern=adapter.alpha_pattern,
            target_modules=list(adapter.targets),
            task_type="CAUSAL_LM",
        )
        try:
            if self._slots:
                self.model.add_adapter(name, config)
            else:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", category=FutureWarning)
                    self.model = peft.get_peft_model(self.model, config, adapter_name=name)
        except ValueError as error:
            raise CombineError(f"the adapter does not fit base model {self.base.base.name} ({error})") from None
        self.model.eval()
        return name

    def _parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        end = f".{name}.weight"
        return {
            key.removeprefix(PREFIX).removesuffix(end): parameter
            for key, parameter in self.model.named_parameters()
            if key.endswith(end)
        }

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """The active adapter's factors, float32, sorted by name."""
        assert self._active is not None
        return [parameter for _, parameter in sorted(self._parameters(self._active).items())]

    def read_factors(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The active adapter's factors as numpy: (A: (r, in), B: (out, r)) for each module."""
        assert self._active is not None
        values = {
            key: parameter.detach().to("cpu", torch.float32).numpy().copy()
            for key, parameter in self._parameters(self._active).items()
        }
        modules = sorted({key.rpartition(".lora_")[0] for key in values})
        return {module: (values[f"{module}.lora_A"], values[f"{module}.lora_B"]) for module in modules}

    def environment(self) -> Run:
        """Versions, device and kernels, for a record's `run` object."""
        return {
            "device": self.device.type,
            **({"cpu": cpu.cpu_class()} if self.device.type == "cpu" else {}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "operations": str(self.fast_path),
            **({"bitsandbytes": _bitsandbytes_version(), "quantization": "nf4"} if self.quantized else {}),
            "peft": peft.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _bitsandbytes_version() -> str:
    return importlib.metadata.version("bitsandbytes")


def _four_bit(dtype: torch.dtype) -> Any:
    """NF4 with double quantisation (QLoRA, Dettmers et al. 2023), products in `dtype`."""
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # its import tries to load native libraries and fails in many ways
        raise MachineError(
            f"--load-in-4bit: bitsandbytes cannot be imported here ({type(error).__name__})",
            hint="omit --load-in-4bit, or install bitsandbytes for this machine",
        ) from None
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for AVX512-BF16 CPUs.

    Its repacked layers run on a path without a backward pass: after any forward without gradients, training
    goes on with a right-looking loss and wrong gradients. It happens where a layer's own flag says so.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _has_plain_head(lm: LanguageModel) -> bool:
    """Whether logits are the head's product with the decoder's output and nothing else: no cap, scale or bias."""
    head = lm.causal.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or not lm.causal.base_model_prefix:
        return False
    ids = torch.tensor([[1, 2, 3]], device=lm.device)
    with torch.inference_mode():
        output = lm.decoder(input_ids=ids, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        return hidden is not None and torch.equal(head(hidden), lm.causal(input_ids=ids, use_cache=False).logits)


def load(
    base: LocalBase,
    device: str = "auto",
    say: Say = lambda message: None,
    detail: Say = lambda message: None,
    *,
    load_in_4bit: bool = False,
) -> LanguageModel:
    """Load a base model and its tokenizer from its folder: safetensors only, no code from the folder runs.

    Weights are bfloat16 where the device has the instructions, float32 elsewhere; with `load_in_4bit` the
    linear ones are NF4. `say` gets which, `detail` gets folder, versions and threads. MachineError where
    memory or bitsandbytes is missing.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of each later fork
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    target = choose_device(device)
    dtype = torch.bfloat16 if has_bfloat16(target) else torch.float32
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **({"quantization_config": _four_bit(dtype), "device_map": {"": target}} if load_in_4bit else {}),
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{base.folder}: transformers cannot load this base model ({type(error).__name__})",
            hint="fedmed needs a causal language model of an architecture that transformers has built in",
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(f"not enough memory to load {base.base.name}") from None
    if tokenizer.eos_token_id is None:
        raise InputError(f"{base.folder}: the tokenizer has no end token")
    why = "" if dtype == torch.bfloat16 or target.type != "cpu" else " (bfloat16 is not faster on this CPU)"
    kind = "4 bits (NF4), products in " if load_in_4bit else ""
    say(f"{base.base.name} runs on {target.type} in {kind}{str(dtype).removeprefix('torch.')}{why}")
    if load_in_4bit:
        keep_differentiable(model)
    else:
        model.to(target)
    model.eval()
    model.requires_grad_(False)
    lm = LanguageModel(model, tokenizer, target, dtype, base, quantized=load_in_4bit)
    lm.plain_head = _has_plain_head(lm)
    detail(f"{base.folder}; {', '.join(f'{name} {value}' for name, value in lm.environment().items())}")
    for name, reason in lm.fast_path.declined.items():
        detail(f"{name}: computed by the libraries, not by fedmed, for {reason}")
    return lm
