"""Which of fedmed's own operations a model trains and is measured with: decided in one place, by structure.

An operation is used where it computes what transformers and PEFT compute. That is tried on a small model of the same
class and configuration: a few layers, few heads, a small vocabulary, random weights in float64, so that neither the
CPU nor the number format has a say.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fedmed_cli.models import fused_ops
from fedmed_cli.models.attention import Declined, block_attention
from fedmed_cli.models.frozen import FrozenMatrices
from fedmed_cli.models.peft_offline import peft

if TYPE_CHECKING:
    from fedmed_cli.models.language_model import LanguageModel

Tensor = torch.Tensor
ATTENTION, LINEAR, LORA = "attention", "linear", "LoRA"
OPERATIONS: dict[str, fused_ops.Operation] = {ATTENTION: block_attention, **fused_ops.OPERATIONS}
TOLERANCE = 1e-5  # relative; both sides compute norms, softmax and rotation in float32
MOST_PARAMETERS = 50_000_000  # of the small model
_SIZES = {"vocab_size": 61, "intermediate_size": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
_LENGTHS = (23, 11)  # of the two examples


@dataclass(frozen=True)
class FastPath:
    """The operations that are used for a model, and for each other one why it is not."""

    used: tuple[str, ...]
    declined: dict[str, str]

    def __str__(self) -> str:
        return ", ".join(self.used) or "none"


@contextlib.contextmanager
def fast_path(lm: LanguageModel, *names: str) -> Iterator[None]:
    """Put the operations of these names (none: all) on the model where they apply, for the time of the block.

    Within another such block nothing changes.
    """
    if lm.matrices is not None:
        yield
        return
    used = [name for name in lm.fast_path.used if not names or name in names]
    lm.matrices, lm.packs = FrozenMatrices(lm.causal), ATTENTION in used
    try:
        with contextlib.ExitStack() as stack:
            for name in used:
                stack.enter_context(OPERATIONS[name](lm.decoder, lm.matrices))
            yield
    finally:
        lm.matrices, lm.packs = None, False


def decide(decoder: Any, device: torch.device) -> FastPath:
    """Try each operation on a small model like this one, for the device that the model is on."""
    declined = (
        {} if device.type == "cpu" else {ATTENTION: f"fedmed's own is only for CPUs, and the model is on {device.type}"}
    )
    left = [name for name in OPERATIONS if name not in declined]
    try:
        small, pieces = _small_model(decoder)
        expected = _run(small, pieces, [torch.arange(piece.shape[1])[None] for piece in pieces])
    except Exception as error:  # architectures and their configurations fail in many ways
        reason = f"no small model like it could be run ({type(error).__name__}: {str(error)[:200]})"
        return FastPath((), declined | dict.fromkeys(left, reason))
    used: list[str] = []
    for name in left:
        try:
            _try(small, pieces, [*used, name], expected)
            used.append(name)
        except Declined as reason:
            declined[name] = str(reason)
    return FastPath(tuple(used), declined)


def _small_model(decoder: Any) -> tuple[Any, list[Tensor]]:
    """A decoder of this class with LoRA on the linear layers of its attention, and the embeddings of two examples."""
    config = _small_config(decoder.config)
    kind = type(decoder)
    with torch.device("meta"):
        if (size := sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())) > MOST_PARAMETERS:
            raise ValueError(f"it would have {size:,} parameters")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        config._experts_implementation = "eager"  # transformers' others know no float64
        small = kind._from_config(config, attn_implementation="eager", dtype=torch.float64)
        linear = {name for name, module in small.named_modules() if type(module) is torch.nn.Linear}
        targets = sorted(name for name in linear if not name.endswith(("gate_proj", "up_proj", "down_proj")))
        if targets:
            small = peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets), small)
    small = small.double().eval()
    for name, parameter in small.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:  # scores and gates of the size that they have in a trained model
            parameter.data = values * parameter.shape[-1] ** -0.5
        else:  # a norm's weights, or a bias
            parameter.data = 0.3 * values + name.endswith("weight")
        parameter.requires_grad_(".lora_" in name)
    width = small.get_input_embeddings().weight.shape[1]
    return small, [torch.randn(1, n, width, generator=generator, dtype=torch.float64) for n in _LENGTHS]


def _small_config(config: Any) -> Any:
    """A copy with few layers, heads and tokens; each combination of what its layers may be remains."""
    small = copy.deepcopy(config)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    by_layer = {k: v for k, v in vars(config).items() if isinstance(v, list) and len(v) == layers}
    kinds = list(dict.fromkeys(zip(*by_layer.values(), strict=True))) or [()]
    kinds *= 2 if len(kinds) == 1 else 1
    for i, name in enumerate(by_layer):
        setattr(small, name, [kind[i] for kind in kinds])
    key_heads_left = min(key_heads, 2)
    heads_left = key_heads_left * min(heads // key_heads, 3)
    sizes = _SIZES | {"num_hidden_layers": len(kinds), "num_attention_heads": heads_left}
    sizes |= {"num_key_value_heads": key_heads_left, "hidden_size": heads_left * head_dim, "head_dim": head_dim}
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            with contextlib.suppress(AttributeError):  # some derive it from others
                setattr(small, name, size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "quantization_config"):
        if getattr(config, name, None) is not None:
            setattr(small, name, None)
    return small


def _try(small: Any, pieces: list[Tensor], names: list[str], expected: list[Tensor]) -> None:
    """Compare hidden states and gradients with these operations to the expected ones. Declined where they differ."""
    positions = [torch.arange(piece.shape[1])[None] for piece in pieces]
    if ATTENTION in names:
        pieces, positions = [torch.cat(pieces, dim=1)], [torch.cat(positions, dim=1)]
    matrices = FrozenMatrices()
    with contextlib.ExitStack() as stack:
        for name in names:
            if not stack.enter_context(OPERATIONS[name](small, matrices)):
                raise Declined("it has no such layer")
        try:
            found = _run(small, pieces, positions)
            small.train()  # what a model asks for may differ in training
            with torch.random.fork_rng(devices=[]):
                _run(small, pieces, positions)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Declined(f"a small model like it fails ({type(error).__name__}: {str(error)[:200]})") from None
        finally:
            small.eval()
    for one, other in zip(found, expected, strict=True):
        difference = float(torch.linalg.norm(one - other) / torch.linalg.norm(other).clamp(min=1e-3))
        if not difference <= TOLERANCE:
            raise Declined(f"its layers compute something else (relative difference {difference:.0e})")


def _run(small: Any, pieces: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
    """Hidden states of all rows end to end, and their gradients by the embeddings and the LoRA factors."""
    inputs = [piece.clone().requires_grad_() for piece in pieces]
    factors = [parameter for parameter in small.parameters() if parameter.requires_grad]
    rows = [
        small(inputs_embeds=row, position_ids=ids, use_cache=False).last_hidden_state
        for row, ids in zip(inputs, positions, strict=True)
    ]
    hidden = torch.cat(rows, dim=1)
    grad_hidden = torch.linspace(0, 50, hidden.numel(), dtype=hidden.dtype).view_as(hidden).cos_()
    gradients = torch.autograd.grad(hidden, [*inputs, *factors], grad_hidden)
    return [hidden.detach(), torch.cat(gradients[: len(inputs)], dim=1), *gradients[len(inputs) :]]
