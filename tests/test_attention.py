"""Attention over packed examples against torch's own on each alone, and the models that it is used for."""

import types

import pytest
import torch
import transformers

from fedmed_cli import attention, batches
from fedmed_cli.attention import packing
from fedmed_cli.fused import fused

SCALING = 0.3


def gradients(compute, tensors, slope):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = compute(*inputs)
    result.backward(slope.to(result.dtype))
    return [result.detach().float(), *(tensor.grad.float() for tensor in inputs)]


def packed(lengths):
    positions = torch.cat([torch.arange(length) for length in lengths])[None]

    def compute(query, key, value):
        return attention._interface(None, query, key, value, None, scaling=SCALING, position_ids=positions)[0]

    return compute


def alone(lengths):
    def compute(*tensors):
        parts = [
            torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=SCALING, enable_gqa=True)
            for part in zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    return compute


def random_inputs(length, heads=6, shared=2, d=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, length, d), (1, shared, length, d), (1, shared, length, d)]
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return inputs, torch.randn(1, length, heads, d, generator=generator)


@pytest.mark.parametrize("lengths", [[1], [7], [16], [33], [16, 1, 40], [5, 5, 5]])
@pytest.mark.parametrize("block", [4, 16, 128])
@pytest.mark.parametrize("kept", [0, 1000])
def test_packed_examples_get_what_each_gets_alone(lengths, block, kept, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "KEPT_LENGTH", kept)
    inputs, slope = random_inputs(sum(lengths))
    ours = gradients(packed(lengths), inputs, slope)
    for own, torchs in zip(ours, gradients(alone(lengths), inputs, slope), strict=True):
        assert torch.linalg.norm(own - torchs) <= 2e-6 * torch.linalg.norm(torchs)


def test_in_bfloat16_it_is_as_exact_as_torch():
    lengths = [200, 90]
    inputs, slope = random_inputs(sum(lengths), dtype=torch.bfloat16)
    exact = gradients(alone(lengths), [tensor.float() for tensor in inputs], slope.bfloat16())
    ours, torchs = gradients(packed(lengths), inputs, slope), gradients(alone(lengths), inputs, slope)
    for own, other, reference in zip(ours, torchs, exact, strict=True):
        error, yardstick = (torch.linalg.norm(x - reference) / torch.linalg.norm(reference) for x in (own, other))
        assert error < max(2 * yardstick, 0.01)
        assert error > 0  # it was computed in bfloat16


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def loaded(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return types.SimpleNamespace(
        decoder=model.base_model, device=torch.device("cpu"), dtype=dtype, packs=False, can_pack=None
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "options", "packs"),
    [
        (transformers.LlamaConfig, {}, True),
        (transformers.MistralConfig, {"sliding_window": None}, True),
        (transformers.MistralConfig, {"sliding_window": 4096}, False),  # far above what is tried
        (transformers.Qwen2Config, {}, True),
        (transformers.Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, False),
        (transformers.Phi3Config, {}, True),
        (transformers.Gemma3TextConfig, {}, False),  # every second layer has a window
        (transformers.LlamaConfig, {"attention_dropout": 0.1}, False),  # which acts in training alone
    ],
)
def test_only_a_model_that_asks_for_nothing_else_packs(config, options, packs, dtype):
    lm = loaded(config(**SMALL | options), dtype)
    lm.decoder.eval()
    before = lm.decoder.config._attn_implementation
    with packing(lm) as active:
        assert active == lm.packs == packs
        assert (lm.decoder.config._attn_implementation == attention.NAME) == packs
        with packing(lm) as inner:  # within a training, an evaluation
            assert inner == packs
        assert lm.packs == packs
    assert not lm.packs
    assert lm.decoder.config._attn_implementation == before
    assert not lm.decoder.training


def test_a_model_whose_attention_differs_keeps_its_own(monkeypatch):
    monkeypatch.setattr(attention, "_later", lambda n, dtype: torch.zeros(n, n, dtype=dtype))  # sees the future
    with packing(loaded(transformers.LlamaConfig(**SMALL))) as active:
        assert not active


def test_the_order_of_random_numbers_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    lm = loaded(transformers.LlamaConfig(**SMALL | {"attention_dropout": 0.1}))
    torch.manual_seed(3)
    with packing(lm):
        assert torch.equal(torch.rand(1), expected)


def test_padding_stays_within_the_positions_that_a_model_knows():
    config = transformers.GPT2Config(vocab_size=100, n_embd=16, n_head=2, n_layer=1, n_positions=29, attn_pdrop=0.0)
    lm = loaded(config)
    assert batches._aligned(lm, 9) == 16
    assert batches._aligned(lm, 27) == 29
    assert batches._aligned(lm, 29) == 29


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL),
        transformers.Phi3Config(**SMALL | {"partial_rotary_factor": 0.5}),
        transformers.GPTNeoXConfig(**SMALL | {"rotary_pct": 0.25}),
        transformers.Qwen3Config(**SMALL),
    ],
)
def test_fused_parts_change_neither_a_models_hidden_states_nor_their_gradients(config):
    lm = loaded(config)
    lm.decoder.eval().requires_grad_(False)
    embedded, slope = torch.randn(2, 1, 20, 32, generator=torch.Generator().manual_seed(4))

    def run():
        inputs = embedded.clone().requires_grad_()
        hidden = lm.decoder(inputs_embeds=inputs, use_cache=False, position_ids=torch.arange(20)[None])
        hidden.last_hidden_state.backward(slope)
        return hidden.last_hidden_state.detach(), inputs.grad

    plain = run()
    with fused(lm):
        ours = run()
    for own, other in zip(ours, plain, strict=True):
        assert torch.linalg.norm(own - other) <= 1e-5 * torch.linalg.norm(other)
