"""Frozen parts of a decoder layer with a backward pass of their own: less memory traffic, less kept for later.

What transformers computes in many small operations, each keeping its input, is one operation here: the gated
MLP of Llama and its kin, and RMSNorm. Both are used in training alone, where their weights are frozen and a
check on random input has shown that the module computes just this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fedmed_cli.models import LanguageModel

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
        sigmoid = torch.sigmoid(opened)
        silu = opened * sigmoid
        # d silu(o) / d o = sigmoid(o) + silu(o) * (1 - sigmoid(o))
        slope = sigmoid.addcmul_(silu, 1 - sigmoid).mul_(lifted).mul_(inner)
        found: Tensor = torch.addmm(slope @ gate, inner.mul_(silu), up)
        return found.view_as(outer[0]), None, None, None


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight with a frozen weight, in float32 inside: x (..., h), weight (h,) -> (..., h)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, scale, weight)
        result: Tensor = weight * (wide * scale).to(x.dtype)  # rounded before the weight, as transformers does
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        wide, inner = x.float(), (outer[0] * weight).float()
        along = (inner * wide).mean(dim=-1, keepdim=True) * scale.square()
        return ((inner - wide * along) * scale).to(x.dtype), None, None


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
            own = _gated_mlp(module) or _rms_norm(module)
            if own is None:
                continue
            if type(module) not in same:
                same[type(module)] = _computes(module, own, lm)
            if same[type(module)]:
                module.forward = own
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _computes(module: torch.nn.Module, own: Callable[[Tensor], Tensor], lm: LanguageModel) -> bool:
    """Whether `own` gives what the module gives, within rounding of its dtype."""
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[-1], generator=generator).to(lm.device, weight.dtype)
    with torch.no_grad():
        expected = module(x)
        return torch.allclose(own(x), expected, rtol=1e-4 if weight.dtype == torch.float32 else 3e-2, atol=1e-5)
