"""Products with frozen matrices, which are most of a training step, by oneDNN."""

from __future__ import annotations

import functools

import torch

from fedmed_cli.models.cpu import CLASSES, cpu_class, has_bfloat16

Tensor = torch.Tensor
PACKED_BYTES = 1 << 29  # of frozen matrices that may exist a second and a third time


class FrozenMatrix:
    """A frozen (out, in) matrix, for products from either side.

    On a CPU in bfloat16, oneDNN rearranges a matrix in every product, for the instructions that the CPU has. With
    `is_packed` it is rearranged once for each side, when it is first needed there; the products come out bit for bit
    the same. In float32 torch leaves products to MKL, which on an AVX512 EPYC uses less than half of what it
    can; here oneDNN computes them too, and rearranging would gain little.
    """

    def __init__(self, weight: Tensor, is_packed: bool = False) -> None:
        self.weight = weight
        self._by_onednn = weight.device.type == "cpu" and weight.dtype in _formats()
        self._is_packed = is_packed and self._by_onednn and weight.dtype == torch.bfloat16
        self._right: Tensor | None = None
        self._left: Tensor | None = None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias: (n, in) -> (n, out)."""
        if not self._by_onednn:
            return torch.nn.functional.linear(x, self.weight, bias)
        if self._right is None:
            self._right = self._side(self.weight)
        return _product(x, self._right, bias)

    def backward(self, grad_out: Tensor) -> Tensor:
        """The gradient by x of x W^T: grad_out W, (n, out) -> (n, in)."""
        if not self._by_onednn:
            return grad_out @ self.weight
        if self._left is None:
            self._left = self._side(self.weight.T)
        return _product(grad_out, self._left, None)

    def _side(self, weight: Tensor) -> Tensor:
        if not self._is_packed:
            return weight
        with torch.inference_mode(False):
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        return packed


class FrozenMatrices:
    """What the passes of a training or a measurement share: the FrozenMatrix of each weight, and large buffers.

    None is packed where those of `model` have more than PACKED_BYTES together.
    """

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self._made: dict[int, FrozenMatrix] = {}
        self._buffers: dict[str, Tensor] = {}
        frozen = {p.data_ptr(): p for p in model.parameters() if not p.requires_grad} if model else {}
        num_bytes = sum(p.numel() * p.element_size() for p in frozen.values())
        self._is_packed = 0 < num_bytes <= PACKED_BYTES

    def of(self, weight: Tensor, is_packed: bool = False) -> FrozenMatrix:
        """The matrix of this weight, made when it is first asked for; `is_packed` where that is worth its memory."""
        if id(weight) not in self._made:
            self._made[id(weight)] = FrozenMatrix(weight, self._is_packed and is_packed)
        return self._made[id(weight)]

    def buffer(self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory of this name, with what the last use left in it."""
        if name not in self._buffers:
            with torch.inference_mode(False):
                self._buffers[name] = torch.empty(shape, dtype=dtype, device=device)
        return self._buffers[name]


@functools.cache
def _formats() -> frozenset[torch.dtype]:
    """The number formats of products by oneDNN: on classes of CPU where they were run, bfloat16 where it is native."""
    if not torch._C._has_mkldnn or cpu_class() not in CLASSES:
        return frozenset()
    return frozenset({torch.float32, *([torch.bfloat16] if has_bfloat16() else [])})


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
