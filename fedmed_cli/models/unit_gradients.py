"""Gradients of LoRA factors unit by unit: what each unit of privacy adds to a step, from one backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedmed_cli.errors import InputError
from fedmed_cli.models.fast_path import LORA, OPERATIONS, fast_path
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import example_starts
from fedmed_cli.models.peft_offline import peft
from fedmed_cli.models.prompts import Encoded

Tensor = torch.Tensor


class UnitGradients:
    """One row of float32 a unit: `rows` (units, parameters), in the order of `parameters`.

    A forward pass is announced with `begin`, the unit of each of its examples beside; its backward pass then adds
    each example's gradients to its unit's row, while the factors' own `grad` stays empty.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], num_units: int) -> None:
        self.offsets = [0]
        for parameter in parameters:
            self.offsets.append(self.offsets[-1] + parameter.numel())
        self.index_of = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.rows = torch.zeros(num_units, self.offsets[-1], device=parameters[0].device)
        self._segments: list[tuple[int, int, int]] = []

    def begin(self, lm: LanguageModel, batch: Sequence[Encoded], units: Sequence[int]) -> None:
        starts = example_starts(lm, batch)
        self._segments = list(zip(units, starts, starts[1:], strict=False))  # what pads a row at its end is nobody's

    def add(self, parameter: torch.nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Add left^T right over each example's positions: left (positions, m), right (positions, n)."""
        i = self.index_of[id(parameter)]
        part = slice(self.offsets[i], self.offsets[i + 1])
        for unit, start, stop in self._segments:
            self.rows[unit, part].view(parameter.shape).add_(left[start:stop].T @ right[start:stop])


class _UnitLora(torch.autograd.Function):
    """scaling (x A^T) B^T: x (..., in), A (r, in), B (out, r) -> (..., out).

    The backward pass gives the factors' gradients to `gradients`, unit by unit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float, gradients: UnitGradients) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rounded_a, rounded_b = a.to(x.dtype), b.to(x.dtype)
        low = flat @ rounded_a.T
        ctx.save_for_backward(flat, low, rounded_a, rounded_b)
        ctx.factors, ctx.scaling, ctx.gradients = (a, b), scaling, gradients
        return (low @ rounded_b.T).mul_(scaling).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        flat, low, a, b = ctx.saved_tensors
        grad_out = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]) * ctx.scaling
        grad_low = grad_out @ b
        ctx.gradients.add(ctx.factors[0], grad_low, flat)
        ctx.gradients.add(ctx.factors[1], grad_out, low)
        grad_x = (grad_low @ a).view(*grad_outputs[0].shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


@contextlib.contextmanager
def unit_gradients(
    lm: LanguageModel, parameters: Sequence[torch.nn.Parameter], num_units: int
) -> Iterator[UnitGradients]:
    """Have the model's LoRA layers give their gradients by unit, for the time of the block.

    InputError where a trainable parameter is in a layer of another kind: its gradients could not be told apart.
    """
    gradients = UnitGradients(parameters, num_units)
    changed: list[torch.nn.Module] = []
    found: set[int] = set()
    with fast_path(lm, *(name for name in OPERATIONS if name != LORA)):
        try:
            for module in lm.model.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer) and not module.disable_adapters:
                    found |= _replace(module, gradients)
                    changed.append(module)
            if found != set(gradients.index_of):
                raise InputError("DP-SGD: this model has LoRA factors in layers that are not linear")
            yield gradients
        finally:
            for module in changed:
                del module.forward


def _replace(module: Any, gradients: UnitGradients) -> set[int]:
    """Give a layer the forward pass of its base and `_UnitLora`; returns its factors' identities."""
    (name,) = module.active_adapters
    base, scaling = module.base_layer, module.scaling[name]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight

    def forward(x: Tensor) -> Tensor:
        low_rank: Tensor = _UnitLora.apply(x, a, b, scaling, gradients)  # type: ignore[no-untyped-call]
        result: Tensor = base(x) + low_rank
        return result

    module.forward = forward
    return {id(a), id(b)}
