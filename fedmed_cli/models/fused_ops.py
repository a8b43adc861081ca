"""Parts of a decoder layer as one operation each, with a backward pass of its own, for training with frozen weights.

What transformers and PEFT compute in many small operations, each keeping its input, is one operation here: linear
layers with and without LoRA factors, the gated MLP of Llama and its kin, RMSNorm, and rotary positions. Each is a
context manager that puts the operation in the place of the modules it matches by their structure; whether it
computes what they compute is tried by `fast_path`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from fedmed_cli.models.attention import Declined
from fedmed_cli.models.frozen import FrozenMatrices, FrozenMatrix
from fedmed_cli.models.peft_offline import peft

Tensor = torch.Tensor
Forward = Callable[[Tensor], Tensor]
Operation = Callable[[Any, FrozenMatrices], contextlib.AbstractContextManager[int]]
SAVED_ROWS = {torch.bfloat16: 640, torch.float32: 448}  # of a pass on a CPU


class _Linear(torch.autograd.Function):
    """x W^T + bias with a frozen W: x (..., in), W (out, in) -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FrozenMatrix, bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return matrix.forward(x.reshape(-1, x.shape[-1]), bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad_out,) = grad_outputs
        grad_x = ctx.matrix.backward(grad_out.reshape(-1, grad_out.shape[-1]))
        return grad_x.view(*grad_out.shape[:-1], -1), None, None


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T: x (..., in), W (out, in) frozen, A (r, in), B (out, r) -> (..., out).

    The factors are rounded to the dtype of x for the products, as under autocast; their gradients come back in
    the factors' own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: FrozenMatrix, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rounded_a, rounded_b = a.to(x.dtype), b.to(x.dtype)
        low = flat @ rounded_a.T
        ctx.save_for_backward(flat, low, rounded_a, rounded_b)
        ctx.matrix, ctx.scaling, ctx.dtype = matrix, scaling, a.dtype
        result = matrix.forward(flat, bias).addmm_(low, rounded_b.T, alpha=scaling)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, low, a, b = ctx.saved_tensors
        grad_out = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        grad_low = grad_out @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.matrix.backward(grad_out).addmm_(grad_low, a, alpha=ctx.scaling)
            grad_x = grad_x.view(*grad_outputs[0].shape[:-1], -1)
        grad_a, grad_b = grad_low.T @ flat, grad_out.T @ low
        return grad_x, None, None, grad_a.to(ctx.dtype).mul_(ctx.scaling), grad_b.to(ctx.dtype).mul_(ctx.scaling), None


class _GatedMLP(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with frozen matrices: x (..., h), gate and up (m, h), down (h, m) -> (..., h).

    The two inner products are kept for the backward pass; on a CPU they are recomputed where x has more rows
    than SAVED_ROWS says: of all that a layer keeps, they are the most.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: FrozenMatrix, up: FrozenMatrix, down: FrozenMatrix) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        opened, lifted = gate.forward(flat), up.forward(flat)
        if ctx.needs_input_grad[0]:
            is_saved = len(flat) <= SAVED_ROWS.get(x.dtype, 0) or x.device.type != "cpu"
            ctx.save_for_backward(*((opened, lifted) if is_saved else (flat,)))
            ctx.matrices = gate, up, down
        return down.forward(torch.nn.functional.silu(opened).mul_(lifted)).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        gate, up, down = ctx.matrices
        saved = ctx.saved_tensors
        opened, lifted = saved if len(saved) == 2 else (gate.forward(saved[0]), up.forward(saved[0]))
        grad_out = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        grad_inner = down.backward(grad_out)
        grad_opened = torch.ops.aten.silu_backward(grad_inner * lifted, opened)
        grad_lifted = grad_inner.mul_(torch.nn.functional.silu(opened))
        grad_x = gate.backward(grad_opened).add_(up.backward(grad_lifted))
        return grad_x.view_as(grad_outputs[0]), None, None, None


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
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        wide, grad_normed = x.float(), (grad_outputs[0] * weight).float()
        along = (grad_normed * wide).mean(dim=-1, keepdim=True).mul_(scale.square())
        return grad_normed.addcmul_(wide, along, value=-1).mul_(scale).to(x.dtype), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (…, d) turned by cos and sin that broadcast to it, its halves against each other."""
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return result


class _Rotary(torch.autograd.Function):
    """`rotate` of x (batch, heads, l, d) by cos and sin (batch, 1, l, d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = cos.shape[-1] // 2
        grad_out = grad_outputs[0]
        grad_x = grad_out * cos
        grad_x[..., half:].addcmul_(grad_out[..., :half], sin[..., :half], value=-1)
        grad_x[..., :half].addcmul_(grad_out[..., half:], sin[..., half:])
        return grad_x, None, None


def _linear(module: Any, matrices: FrozenMatrices) -> Forward | None:
    if type(module) is not torch.nn.Linear or module.weight.requires_grad:  # LoRA's factors are such layers too
        return None
    matrix, bias = matrices.of(module.weight), module.bias
    return lambda x: _Linear.apply(x, matrix, bias)  # type: ignore[no-untyped-call]


def _lora_linear(module: Any, matrices: FrozenMatrices) -> Forward | None:
    if type(module) is not peft.tuners.lora.Linear or len(module.active_adapters) != 1:
        return None
    name = module.active_adapters[0]
    base = module.base_layer
    if type(base) is not torch.nn.Linear or module.lora_variant or name not in module.lora_A:
        return None
    if type(module.lora_dropout[name]) is not torch.nn.Identity or module.lora_B[name].bias is not None:
        return None
    matrix, scaling = matrices.of(base.weight), module.scaling[name]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight

    def forward(x: Tensor) -> Tensor:
        if module.disable_adapters or module.merged or module.active_adapters != [name]:
            original: Tensor = type(module).forward(module, x)
            return original
        result: Tensor = _LoraLinear.apply(x, matrix, base.bias, a, b, scaling)  # type: ignore[no-untyped-call]
        return result

    return forward


def _gated_mlp(module: torch.nn.Module, matrices: FrozenMatrices) -> Forward | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if any(type(part) is not torch.nn.Linear or part.bias is not None for part in parts):
        return None
    gate, up, down = (matrices.of(part.weight, is_packed=True) for part in parts if part is not None)
    return lambda x: _GatedMLP.apply(x, gate, up, down)  # type: ignore[no-untyped-call]


def _rms_norm(module: torch.nn.Module, _: FrozenMatrices) -> Forward | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or epsilon is None or weight is None:
        return None
    return lambda x: _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]


Match = Callable[[torch.nn.Module, FrozenMatrices], Forward | None]


@contextlib.contextmanager
def _replaced(match: Match, decoder: torch.nn.Module, matrices: FrozenMatrices) -> Iterator[int]:
    """Give each module that matches its operation as `forward`; yields how many do."""
    changed: list[torch.nn.Module] = []
    try:
        for module in decoder.modules():
            forward = match(module, matrices)
            if forward is not None:
                module.forward = forward
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


@contextlib.contextmanager
def _rotation(decoder: torch.nn.Module, _: FrozenMatrices) -> Iterator[int]:
    """Put `_Rotary` in the place of the function of this name that the decoder's attention calls."""
    name = "apply_rotary_pos_emb"
    architecture = sys.modules[type(decoder).__module__]
    original = getattr(architecture, name, None)
    if original is None:
        raise Declined("its positions are not rotary, or rotate in a way of its own")

    def rotate(
        query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1, **others: Any
    ) -> tuple[Tensor, Tensor]:
        if others or cos.shape[-1] != query.shape[-1]:
            raise Declined(f"rotary positions act on {cos.shape[-1]} of the {query.shape[-1]} dimensions of a head")
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)  # type: ignore[no-untyped-call]

    setattr(architecture, name, rotate)
    try:
        yield 1
    finally:
        setattr(architecture, name, original)


OPERATIONS: dict[str, Operation] = {
    "linear": partial(_replaced, _linear),
    "LoRA": partial(_replaced, _lora_linear),
    "gated MLP": partial(_replaced, _gated_mlp),
    "RMSNorm": partial(_replaced, _rms_norm),
    "rotary": _rotation,
}
