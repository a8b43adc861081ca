"""Causal attention on a CPU for training: plain matrix products over blocks of queries, examples packed end to end.

torch's own kernel for CPUs spends most of its time in its backward pass (docs/training.md). Here the scores of
one block of queries at a time come from batched products; what a block cannot see is not computed. Examples
that lie one after another in a row, each counting its positions from 0, do not see each other, so that a
forward pass needs no padding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from fedmed_cli.models.frozen import FrozenMatrices

Tensor = torch.Tensor
BLOCK = 128  # queries whose scores exist at a time
SAVED_LENGTH = 320  # of an example whose probabilities are saved for the backward pass; others are recomputed
NAME = "fedmed_blocks"
_KNOWN = {"scaling", "dropout", "is_causal", "position_ids", "use_cache"}  # of what models tell their attention


def _blocks(starts: list[int], length: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of an example's queries, and the keys that each sees, as positions in the row."""
    for start, end in zip(starts, [*starts[1:], length], strict=True):
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            yield slice(first, last), slice(start, last)


def _probabilities(queries: Tensor, keys: Tensor) -> Tensor:
    """What the last n positions give to each up to themselves: (b, n, g, d), (b, seen, d) -> (b, n g, seen)."""
    b, n, g, d = queries.shape
    scores = torch.bmm(queries.view(b, n * g, d), keys.transpose(1, 2))
    scores.view(b, n, g, -1)[..., -n:].add_(_later(n, scores.dtype)[:, None])
    return torch.softmax(scores, dim=-1)


@functools.lru_cache(maxsize=256)
def _later(n: int, dtype: torch.dtype) -> Tensor:
    """What takes the sight of later positions from n queries: 0 up to the diagonal, -inf above it."""
    return torch.full((n, n), -torch.inf, dtype=dtype).triu_(1)


class _Attention(torch.autograd.Function):
    """query (1, heads, l, d), key and value (1, key heads, l, d), where examples begin -> (1, l, heads, d).

    Inside, b counts the key heads, each with g query heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, starts: list[int]) -> Tensor:
        _, heads, length, d = query.shape
        keys, values = key[0].contiguous(), value[0].contiguous()
        b, g = len(keys), heads // len(keys)
        queries = torch.empty(b, length, g, d, dtype=query.dtype)
        torch.mul(query.view(b, g, length, d).transpose(1, 2), scaling, out=queries)
        result = torch.empty(length, b, g, d, dtype=query.dtype)
        probabilities = []
        for block, seen in _blocks(starts, length):
            shares = _probabilities(queries[:, block], keys[:, seen])
            result[block] = torch.bmm(shares, values[:, seen]).view(b, -1, g, d).transpose(0, 1)
            probabilities.append(shares)
        is_saved = length <= SAVED_LENGTH * len(starts)
        ctx.save_for_backward(queries, keys, values, *(probabilities if is_saved else ()))
        ctx.scaling, ctx.starts = scaling, starts
        return result.view(1, length, heads, d)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values, *saved = ctx.saved_tensors
        b, length, g, d = queries.shape
        grad_out = grad_outputs[0].reshape(length, b, g, d)
        grad_queries = torch.empty_like(grad_out)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for i, (block, seen) in enumerate(_blocks(ctx.starts, length)):
            shares = saved[i] if saved else _probabilities(queries[:, block], keys[:, seen])
            grad_block = grad_out[block].transpose(0, 1).reshape(b, -1, d)
            grad_values[:, seen].baddbmm_(shares.transpose(1, 2), grad_block)
            grad_shares = torch.bmm(grad_block, values[:, seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
            grad_queries[block] = torch.bmm(grad_scores, keys[:, seen]).view(b, -1, g, d).transpose(0, 1)
            grad_keys[:, seen].baddbmm_(grad_scores.transpose(1, 2), queries[:, block].view(b, -1, d))
        grad_query = grad_queries.mul_(ctx.scaling).view(1, length, b * g, d).transpose(1, 2)
        return grad_query, grad_keys[None], grad_values[None], None, None


class Declined(Exception):
    """Why an operation of fedmed's own does not compute what this model asks for."""


def _interface(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface, for one row: query (1, heads, l, d), key and value (1, key heads, l, d)."""
    positions = options.get("position_ids")
    asked = {name: option for name, option in options.items() if name not in _KNOWN}
    asked |= {"dropout": options["dropout"]} if options.get("dropout") else {}
    asked |= {"mask": "of its own"} if mask is not None else {}
    asked = {name: option for name, option in asked.items() if option is not None and option is not False}
    if asked:
        layer = getattr(module, "layer_idx", None)
        what = ", ".join(name if isinstance(value, Tensor) else f"{name} {value}" for name, value in asked.items())
        raise Declined(f"layer {layer} asks its attention for {what}")
    if positions is None:
        raise Declined("its attention gets no positions")
    if value.shape[-1] != key.shape[-1]:
        raise Declined("keys and values differ in size")
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    return _Attention.apply(query, key, value, options["scaling"], starts), None  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def block_attention(decoder: Any, _: FrozenMatrices) -> Iterator[int]:
    """Compute the decoder's attention here for the time of the block; yields the number of layers.

    Declined where what it computes here is not what the layers do.
    """
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    chunk = getattr(config, "attention_chunk_size", None)  # only a mask shows it
    if not getattr(decoder, "_supports_attention_backend", False):
        raise Declined("transformers has no attention interface for this architecture")
    if kinds != {"full_attention"} or chunk:
        raise Declined(f"its layers have {', '.join(sorted(kinds - {'full_attention'})) or f'chunks of {chunk}'}")
    if not any(type(module).__name__.endswith("RotaryEmbedding") for module in decoder.modules()):
        raise Declined("its positions are not rotary")
    transformers.AttentionInterface.register(NAME, _interface)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield config.num_hidden_layers
    finally:
        config._attn_implementation = before
