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

from fedmed_cli.models import LanguageModel

Tensor = torch.Tensor
BLOCK = 128  # queries whose scores exist at a time
KEPT_LENGTH = 320  # of an example whose probabilities are kept for the backward pass; others are made again
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
        kept = []
        for block, seen in _blocks(starts, length):
            given = _probabilities(queries[:, block], keys[:, seen])
            result[block] = torch.bmm(given, values[:, seen]).view(b, -1, g, d).transpose(0, 1)
            kept.append(given)
        is_kept = length <= KEPT_LENGTH * len(starts)
        ctx.save_for_backward(queries, keys, values, *(kept if is_kept else ()))
        ctx.scaling, ctx.starts = scaling, starts
        return result.view(1, length, heads, d)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values, *kept = ctx.saved_tensors
        b, length, g, d = queries.shape
        slopes = outer[0].reshape(length, b, g, d)
        of_queries, of_keys, of_values = torch.empty_like(slopes), torch.zeros_like(keys), torch.zeros_like(values)
        for i, (block, seen) in enumerate(_blocks(ctx.starts, length)):
            given = kept[i] if kept else _probabilities(queries[:, block], keys[:, seen])
            slope = slopes[block].transpose(0, 1).reshape(b, -1, d)
            of_values[:, seen].baddbmm_(given.transpose(1, 2), slope)
            of_given = torch.bmm(slope, values[:, seen].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_given, given, -1, given.dtype)
            of_queries[block] = torch.bmm(of_scores, keys[:, seen]).view(b, -1, g, d).transpose(0, 1)
            of_keys[:, seen].baddbmm_(of_scores.transpose(1, 2), queries[:, block].view(b, -1, d))
        of_query = of_queries.mul_(ctx.scaling).view(1, length, b * g, d).transpose(1, 2)
        return of_query, of_keys[None], of_values[None], None, None


class _Unsupported(Exception):
    """The model asks its attention for something that is not computed here."""


def _interface(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface, for one row: query (1, heads, l, d), key and value (1, key heads, l, d)."""
    positions = options.get("position_ids")
    odd = any(name not in _KNOWN and option is not None and option is not False for name, option in options.items())
    if odd or mask is not None or options.get("dropout") or positions is None or value.shape[-1] != key.shape[-1]:
        raise _Unsupported
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    return _Attention.apply(query, key, value, options["scaling"], starts), None  # type: ignore[no-untyped-call]


transformers.AttentionInterface.register(NAME, _interface)


@contextlib.contextmanager
def packing(lm: LanguageModel) -> Iterator[bool]:
    """Where the model can pack, compute its attention here for the time of the block; yields whether that is so."""
    if lm.packs or not can_pack(lm):
        yield lm.packs
        return
    config = lm.decoder.config
    before = config._attn_implementation
    config._attn_implementation, lm.packs = NAME, True
    try:
        yield True
    finally:
        config._attn_implementation, lm.packs = before, False


def can_pack(lm: LanguageModel) -> bool:
    """Whether the model is on a CPU, takes its attention from transformers' interface, and asks for no other.

    It is tried once. A model whose layers see less than all earlier positions, or cap scores, or the like, keeps
    its own attention.
    """
    if lm.can_pack is None:
        lm.can_pack = lm.device.type == "cpu" and _computes_the_same(lm)
    return lm.can_pack


def _computes_the_same(lm: LanguageModel) -> bool:
    """Whether two packed examples get the hidden states that transformers' plain attention gives each alone.

    Judged by the median over an example's positions: in bfloat16 single positions amplify any rounding.
    """
    config = lm.decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    chunked = getattr(config, "attention_chunk_size", None)  # a mask alone tells of it
    if not getattr(lm.decoder, "_supports_attention_backend", False) or kinds != {"full_attention"} or chunked:
        return False
    examples = [torch.arange(start, start + length)[None] % config.vocab_size for start, length in ((1, 23), (7, 11))]
    positions = torch.cat([torch.arange(ids.shape[1]) for ids in examples])[None]
    before, was_training = config._attn_implementation, lm.decoder.training
    lm.decoder.eval()
    try:
        with torch.inference_mode():
            config._attn_implementation = "eager"
            alone = [lm.decoder(input_ids=ids, use_cache=False).last_hidden_state for ids in examples]
            config._attn_implementation = NAME
            inputs = {"input_ids": torch.cat(examples, dim=1), "position_ids": positions, "use_cache": False}
            row = lm.decoder(**inputs)
            with torch.random.fork_rng(devices=[]):  # what a model asks for may differ in training
                lm.decoder.train()
                lm.decoder(**inputs)
    except (_Unsupported, RuntimeError, TypeError, ValueError):
        return False
    finally:
        config._attn_implementation = before
        lm.decoder.train(was_training)
    packed = row.last_hidden_state.split([ids.shape[1] for ids in examples], dim=1)
    errors = [
        (torch.linalg.norm((ours - theirs).float(), dim=-1) / torch.linalg.norm(theirs.float(), dim=-1).clamp(1e-6))
        for ours, theirs in zip(packed, alone, strict=True)
    ]
    return all(float(error.median()) < (1e-4 if lm.dtype == torch.float32 else 2e-2) for error in errors)
