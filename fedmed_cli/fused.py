"""Frozen parts of a decoder layer with a backward pass of their own: less memory traffic, less kept for later.

What transformers and PEFT compute in many small operations, each keeping its input, is one operation here: the
gated MLP of Llama and its kin, RMSNorm, and a linear layer with LoRA factors on it; on a CPU, attention too
(attention.py). They are used in training alone, where weights are frozen and a check on random input has shown
that the module computes just this.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fedmed_cli.attention import packing
from fedmed_cli.models import LanguageModel
from fedmed_cli.offline import peft

Tensor = torch.Tensor
KEPT_ROWS = 640


class _GatedMLP(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with frozen matrices: x (..., h), gate and up (m, h), down (h, m) -> (..., h).

    The two inner products are kept for the backward pass; on a CPU they are made again where x has more than
    KEPT_ROWS rows: of all that a layer keeps, they are the most.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        opened, lifted = flat @ gate.T, flat @ up.T
        if ctx.needs_input_grad[0]:
            is_kept = len(flat) <= KEPT_ROWS or x.device.type != "cpu"
            ctx.save_for_backward(*((opened, lifted) if is_kept else (flat,)), gate, up, down)
        result: Tensor = torch.nn.functional.silu(opened).mul_(lifted) @ down.T
        return result.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        *kept, gate, up, down = ctx.saved_tensors
        opened, lifted = kept if len(kept) == 2 else (kept[0] @ gate.T, kept[0] @ up.T)
        inner = outer[0].reshape(-1, outer[0].shape[-1]) @ down
        slope = torch.ops.aten.silu_backward(inner * lifted, opened)
        found: Tensor = torch.addmm(slope @ gate, inner.mul_(torch.nn.functional.silu(opened)), up)
        return found.view_as(outer[0]), None, None, None


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight with a frozen weight, in float32 inside: x (..., h), weight (h,) -> (..., h)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, scale, weight)
        normed = wide.mul_(scale) if wide is not x else wide * scale
        result: Tensor = weight * normed.to(x.dtype)  # rounded before the weight, as transformers does
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        wide, inner = x.float(), (outer[0] * weight).float()
        along = (inner * wide).mean(dim=-1, keepdim=True).mul_(scale.square())
        return inner.addcmul_(wide, along, value=-1).mul_(scale).to(x.dtype), None, None


class _LoraLinear(torch.autograd.Function):
    """x W^T + scaling (x A^T) B^T with a frozen W: x (..., in), W (out, in), A (r, in), B (out, r) -> (..., out).

    The factors are rounded to the dtype of x for the products, as under autocast; their gradients come back in
    the factors' own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rounded_a, rounded_b = a.to(x.dtype), b.to(x.dtype)
        low = flat @ rounded_a.T
        ctx.save_for_backward(flat, low, weight, rounded_a, rounded_b)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        result: Tensor = (flat @ weight.T).addmm_(low, rounded_b.T, alpha=scaling)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        flat, low, weight, a, b = ctx.saved_tensors
        slope = outer[0].reshape(-1, outer[0].shape[-1])
        of_low = slope @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (slope @ weight).addmm_(of_low, a, alpha=ctx.scaling).view(*outer[0].shape[:-1], -1)
        of_a, of_b = of_low.T @ flat, slope.T @ low
        return of_x, None, of_a.to(ctx.dtype).mul_(ctx.scaling), of_b.to(ctx.dtype).mul_(ctx.scaling), None


def _lora_linear(module: Any) -> Callable[[Tensor], Tensor] | None:
    if type(module) is not peft.tuners.lora.Linear or len(module.active_adapters) != 1:
        return None
    name = module.active_adapters[0]
    base = module.base_layer
    if type(base) is not torch.nn.Linear or base.bias is not None or module.lora_variant or name not in module.lora_A:
        return None
    if type(module.lora_dropout[name]) is not torch.nn.Identity or module.lora_B[name].bias is not None:
        return None
    a, b, scaling = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]

    def forward(x: Tensor) -> Tensor:
        if module.disable_adapters or module.merged or module.active_adapters != [name]:
            original: Tensor = type(module).forward(module, x)
            return original
        result: Tensor = _LoraLinear.apply(x, base.weight, a, b, scaling)
        return result

    return forward


class _Rotary(torch.autograd.Function):
    """Rotary positions: x (batch, heads, l, d) turned by cos and sin (batch, 1, l, d), halves against each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        result = x * cos
        result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        result[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = cos.shape[-1] // 2
        slope = outer[0]
        result = slope * cos
        result[..., half:].addcmul_(slope[..., :half], sin[..., :half], value=-1)
        result[..., :half].addcmul_(slope[..., half:], sin[..., half:])
        return result, None, None


@contextlib.contextmanager
def _own_rotation(lm: LanguageModel) -> Iterator[bool]:
    """Put `_Rotary` in the place of the function of this name that the model's attention calls, if it does this."""
    name = "apply_rotary_pos_emb"
    home = sys.modules[type(lm.decoder).__module__]
    theirs = getattr(home, name, None)

    def rotate(
        query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, unsqueeze_dim: int = 1, **named: Any
    ) -> tuple[Tensor, Tensor]:
        if more or named or cos.shape[-1] != query.shape[-1]:  # a part of each head alone turns
            given: tuple[Tensor, Tensor] = theirs(query, key, cos, sin, *more, unsqueeze_dim=unsqueeze_dim, **named)  # type: ignore[misc]
            return given
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)  # type: ignore[no-untyped-call]

    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(shape, generator=generator).to(lm.device, lm.dtype)
        for shape in ((1, 3, 5, 8), (1, 1, 5, 8), (1, 5, 8), (1, 5, 8))
    )
    try:
        expected, found = theirs(query, key, cos, sin), rotate(query, key, cos, sin)  # type: ignore[misc]
        same = all(_are_close(one, two) for one, two in zip(found, expected, strict=True))
    except (TypeError, ValueError, RuntimeError):
        same = False
    if same:
        setattr(home, name, rotate)
    try:
        yield same
    finally:
        if same:
            setattr(home, name, theirs)


def _gated_mlp(module: torch.nn.Module) -> Callable[[Tensor], Tensor] | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if any(type(part) is not torch.nn.Linear or part.bias is not None for part in parts):
        return None
    gate, up, down = (part.weight for part in parts if part is not None)
    return lambda x: _GatedMLP.apply(x, gate, up, down)  # type: ignore[no-untyped-call]


def _rms_norm(module: torch.nn.Module) -> Callable[[Tensor], Tensor] | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or epsilon is None or weight is None:
        return None
    return lambda x: _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def fused(lm: LanguageModel) -> Iterator[int]:
    """Put these operations in the place of the modules that compute the same; yields how many."""
    changed: list[torch.nn.Module] = []
    same: dict[type, bool] = {}
    try:
        for module in lm.decoder.modules():
            own = _gated_mlp(module) or _rms_norm(module) or _lora_linear(module)
            if own is None:
                continue
            if type(module) not in same:
                same[type(module)] = _computes(module, own, lm)
            if same[type(module)]:
                module.forward = own
                changed.append(module)
        with _own_rotation(lm), packing(lm):
            yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _computes(module: torch.nn.Module, own: Callable[[Tensor], Tensor], lm: LanguageModel) -> bool:
    """Whether `own` gives what the module gives, within rounding of its dtype."""
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[-1], generator=generator).to(lm.device, weight.dtype)
    factors = [part.weight for part in module.lora_B.values()] if isinstance(module, peft.tuners.lora.Linear) else []
    kept = [factor.detach().clone() for factor in factors]
    with torch.no_grad():
        for factor in factors:  # at the start B is 0, and would hide what A and B do
            factor.copy_(torch.randn(factor.shape, generator=generator))
        expected, found = module(x), own(x)
        for factor, values in zip(factors, kept, strict=True):
            factor.copy_(values)
    return _are_close(found, expected)


def _are_close(found: Tensor, expected: Tensor) -> bool:
    error = torch.linalg.norm((found - expected).float()) / torch.linalg.norm(expected.float())
    return float(error) < (1e-5 if expected.dtype == torch.float32 else 1e-2)
