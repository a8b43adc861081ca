"""Token by token decoding of one conversation: adapter merged, keys and values kept between turns.

On a CPU a pass costs what the weights take through memory, for one token nearly as much as for four. So two things
make it faster: products with weight-only int8, and drafts, several tokens guessed and checked in one pass. Without
int8 and drafts this loop is no faster than transformers' own. benchmarks/chat/decoding.py measures all in
turns, and docs/chat.md has the figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.chat.prompt_lookup import MAX_DRAFT, PromptLookup
from fedmed_cli.errors import CombineError
from fedmed_cli.models.fused_ops import rotate
from fedmed_cli.models.language_model import LanguageModel

MAX_PARAMETERS = 2_000_000_000  # larger models are bound by memory, and a second copy of their weights may not fit
MIN_HIDDEN_SIZE = 256  # smaller ones gain nothing from int8
PREFILL_TOKENS = 256  # read at once, so that Ctrl-C is heard


class Decoder(Protocol):
    """What a conversation needs of a model: it reads tokens after those it knows, and gives the next one's logits."""

    kernels: str
    max_draft: int

    def use(self, adapter: Adapter | None) -> None:
        """Decode with `adapter` from now on; what was read is forgotten. CombineError where it does not fit."""

    def read(self, ids: Sequence[int], draft: Sequence[int] = ()) -> torch.Tensor:
        """Read `ids` from the start, reusing what is the same as before, and at most `max_draft` guessed tokens.

        Returns the logits of the token after `ids` and of those after each of `draft`: (1 + draft, vocabulary).
        """


def make(lm: LanguageModel, max_tokens: int) -> Decoder:
    """The fastest decoder that knows the model: our own for small Llama-like ones on a CPU, else transformers."""
    model = lm.take_off()
    config = model.config
    is_known = (
        lm.device.type == "cpu"
        and config.model_type in ("llama", "mistral")
        and getattr(config, "sliding_window", None) is None
        and config.hidden_act == "silu"
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and getattr(config, "pretraining_tp", 1) == 1
        and sum(parameter.numel() for parameter in model.parameters()) <= MAX_PARAMETERS
    )
    return MergedDecoder(lm, max_tokens) if is_known else TransformersDecoder(lm)


def generate(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    stop: frozenset[int],
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """New tokens after `ids`, one by one, the stop token not among them; greedy at temperature 0.

    A drafted token counts for nothing in the choice: each token is chosen from the logits after those before it,
    and the rest of a draft is dropped where the choice was another.
    """
    ids, lookup = list(ids), PromptLookup(ids)
    left = max_new_tokens
    while left:
        draft = lookup.next(min(decoder.max_draft, left - 1))
        for logits, drafted in zip(decoder.read(ids, draft), [*draft, None], strict=True):
            if temperature > 0:
                shares = torch.softmax(logits.float() / temperature, dim=-1)
                token = int(torch.multinomial(shares, 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token in stop:
                return
            yield token
            ids.append(token)
            lookup.append(token)
            left -= 1
            if token != drafted:
                break


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike, at most all but the last of `other`."""
    most = min(len(one), len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


class TransformersDecoder:
    """Any model that transformers runs, with the adapter beside the weights and transformers' own cache.

    Without drafts: not every cache can be shortened when they are wrong.
    """

    max_draft = 0

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.kernels = f"transformers, {str(lm.dtype).removeprefix('torch.')}"
        self._ids: list[int] = []
        self._cache: Any = None

    def use(self, adapter: Adapter | None) -> None:
        self.lm.use(adapter)
        self._ids, self._cache = [], None

    def read(self, ids: Sequence[int], draft: Sequence[int] = ()) -> torch.Tensor:
        from transformers import DynamicCache

        assert not draft
        known = _common(self._ids, ids)
        if self._cache is None or not _crop(self._cache, known):
            self._cache, known = DynamicCache(config=self.lm.model.config), 0
        self._ids = list(ids[:known])
        new = torch.tensor([list(ids[known:])], device=self.lm.device)
        with torch.inference_mode():
            output = self.lm.model(input_ids=new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._ids = list(ids)
        logits: torch.Tensor = output.logits[0, -1:]
        return logits


def _crop(cache: Any, length: int) -> bool:
    """Shorten a cache to `length` tokens; whether it can be."""
    if cache.get_seq_length() < length:
        return False
    if cache.get_seq_length() > length:
        cache.crop(length - cache.get_seq_length())  # a negative number: how many to take off
    return bool(cache.get_seq_length() == length)


def _normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm of x: (tokens, hidden), in half the time that torch's own takes for a few tokens."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale: torch.Tensor = length.square_().mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return x * scale * weight


class _Linear:
    """A weight (out, in): as it is for many rows at once, int8 with a scale for each output for a few."""

    def __init__(self, weights: Sequence[torch.Tensor], is_int8: bool) -> None:
        """`weights` share their input; their outputs come one after the other."""
        self.weights = list(weights)
        self.int8: tuple[torch.Tensor, torch.Tensor] | None = None
        if is_int8:
            parts = [_quantize(weight) for weight in weights]
            self.int8 = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, in) to (tokens, out), in the type of the weights, with int8 ones bfloat16."""
        if self.int8 is not None and len(x) <= 1 + MAX_DRAFT:
            return torch._weight_int8pack_mm(x.to(torch.bfloat16), *self.int8)
        dtype = self.weights[0].dtype
        parts = [functional.linear(x.to(dtype), weight) for weight in self.weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest int8 values of each row and the row's scale, which is bfloat16 because the kernel's inputs are."""
    scale = (weight.float().abs().amax(dim=1) / 127).clamp(min=1e-12)
    # Rounded up to bfloat16 before it is used, so that rounding the scale costs nothing and nothing exceeds 127.
    scale = (scale * (1 + 2**-8)).to(torch.bfloat16)
    values = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values, scale


class _Layer:
    """One decoder layer's weights: norms, and the four products that are left when those with one input are joined."""

    def __init__(self, layer: Any, changed: Mapping[str, torch.Tensor], is_int8: bool) -> None:
        """`changed` are weights instead of the layer's own, by the name of their module in it."""

        def linear(*names: str) -> _Linear:
            weights = (changed[name] if name in changed else layer.get_submodule(name).weight for name in names)
            return _Linear(list(weights), is_int8)

        self.norms = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()
        self.qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.o = linear("self_attn.o_proj")
        self.gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self.down = linear("mlp.down_proj")


class MergedDecoder:
    """A Llama or Mistral on a CPU, the adapter merged into its weights. The base stays as it was loaded.

    The sum of the layers, keys and values are float32. Prompts are read with the weights as they are, new tokens
    with int8 ones.
    """

    def __init__(self, lm: LanguageModel, max_tokens: int, is_int8: bool | None = None) -> None:
        self._name = lm.base.base.name
        # Kept apart from `lm`: PEFT may put its layers around these modules later, the weights inside stay the base's.
        self._base = lm.take_off()
        config = self._base.config
        self.is_int8 = config.hidden_size >= MIN_HIDDEN_SIZE if is_int8 is None else is_int8
        self.max_draft = MAX_DRAFT
        self.kernels = "merged, int8 weights" if self.is_int8 else f"merged, {str(lm.dtype).removeprefix('torch.')}"
        self._eps = float(config.rms_norm_eps)
        self._heads, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        model = self._base.model
        with torch.inference_mode():
            positions = torch.arange(max_tokens)[None]
            # Each (max_tokens, 1, size).
            self._cos, self._sin = (x[0, :, None].float() for x in model.rotary_emb(torch.zeros(1, 1, 1), positions))
            self._embedding = model.embed_tokens.weight
            self._norm = model.norm.weight.float()
            self._head = _Linear([self._base.lm_head.weight], self.is_int8)
            # (keys or values, tokens, heads, size) for each layer
            shape = (2, max_tokens, self._kv_heads, self._size)
            self._cache = [torch.zeros(shape) for _ in model.layers]
            self._layers = [_Layer(layer, {}, self.is_int8) for layer in model.layers]
        self._merged: set[int] = set()  # layers whose weights are not the base's
        self._ids: list[int] = []

    @torch.inference_mode()
    def use(self, adapter: Adapter | None) -> None:
        self._ids = []
        changed: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for module, (a, b) in (adapter.factors if adapter else {}).items():
            try:
                old = self._base.get_submodule(module).weight
            except AttributeError:
                old = None
            if old is None or tuple(old.shape) != (b.shape[0], a.shape[1]) or not module.startswith("model.layers."):
                raise CombineError(f"the adapter does not fit base model {self._name}: module {module!r}")
            assert adapter is not None
            product = torch.tensor(b) @ torch.tensor(a)
            _, _, index, name = module.split(".", 3)
            changed[int(index)][name] = (old.float() + adapter.scale(module) * product).to(old.dtype)
        for number in changed.keys() | self._merged:
            self._layers[number] = _Layer(self._base.model.layers[number], changed.get(number, {}), self.is_int8)
        self._merged = set(changed)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], draft: Sequence[int] = ()) -> torch.Tensor:
        known = _common(self._ids, ids)
        ids, asked = [*ids, *draft], 1 + len(draft)
        x = torch.empty(0)
        while known < len(ids):
            end = min(known + PREFILL_TOKENS, len(ids))
            if len(ids) - asked < end < len(ids):  # what is asked for is read in one pass
                end = len(ids) - asked
            x = self._forward(ids[known:end], known)
            known = end
            self._ids = ids[:known]
        return self._head(_normed(x[-asked:], self._norm, self._eps))

    def _forward(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """Hidden states (tokens, hidden) of `ids` at positions `start` and on; their keys and values are kept."""
        tokens, end = len(ids), start + len(ids)
        x = functional.embedding(torch.tensor(ids), self._embedding).float()
        cos, sin = self._cos[start:end], self._sin[start:end]
        mask = None
        if tokens > 1 and start:
            mask = torch.ones(tokens, end, dtype=torch.bool).tril(diagonal=start)
        rotated = self._heads + self._kv_heads
        for layer, cache in zip(self._layers, self._cache, strict=True):
            y = _normed(x, layer.norms[0], self._eps)
            heads = layer.qkv(y).view(tokens, -1, self._size)  # queries, keys, values
            qk = rotate(heads[:, :rotated].float(), cos, sin)
            cache[0, start:end] = qk[:, self._heads :]
            cache[1, start:end] = heads[:, rotated:]
            attended = functional.scaled_dot_product_attention(
                qk[None, :, : self._heads].transpose(1, 2),  # (1, heads, tokens, size)
                cache[None, 0, :end].transpose(1, 2),
                cache[None, 1, :end].transpose(1, 2),
                attn_mask=mask,
                is_causal=tokens > 1 and not start,
                enable_gqa=True,
            )
            x = x + layer.o(attended[0].transpose(0, 1).reshape(tokens, -1))
            y = _normed(x, layer.norms[1], self._eps)
            gate, up = layer.gate_up(y).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        return x
