"""fedmed's own operations against exact ones, and the models that they are used for."""

import types

import pytest
import torch
import transformers

from fedmed_cli.models import attention, bases, cpu, fast_path, frozen, language_model, loss
from fedmed_cli.models.fast_path import ATTENTION, LINEAR, OPERATIONS, decide
from fedmed_cli.models.frozen import FrozenMatrices, FrozenMatrix

SCALING = 0.3
CPU = torch.device("cpu")


def gradients(compute, tensors, grad_out):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = compute(*inputs)
    result.backward(grad_out.to(result.dtype))
    return [result.detach().double(), *(tensor.grad.double() for tensor in inputs)]


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


def random_inputs(length, heads=6, shared=2, d=8):
    """Query, key and value of entries about 1, and the gradient by the result."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, length, d), (1, shared, length, d), (1, shared, length, d)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    return inputs, torch.randn(1, length, heads, d, generator=generator)


@pytest.mark.parametrize("lengths", [[1], [7], [16], [33], [16, 1, 40], [5, 5, 5]])
@pytest.mark.parametrize("block", [4, 16, 128])
@pytest.mark.parametrize("kept", [0, 1000])
def test_packed_examples_get_what_each_gets_alone(lengths, block, kept, monkeypatch):
    """Against torch in float64, on an absolute scale: at a single position the exact gradient of the query is 0."""
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "SAVED_LENGTH", kept)
    inputs, grad_out = random_inputs(sum(lengths))
    exact = gradients(alone(lengths), [tensor.double() for tensor in inputs], grad_out)
    for own, reference in zip(gradients(packed(lengths), inputs, grad_out), exact, strict=True):
        assert (own - reference).abs().max() <= 2e-5


def test_in_bfloat16_it_is_as_exact_as_its_format():
    lengths = [200, 90]
    inputs, grad_out = random_inputs(sum(lengths))
    inputs = [tensor.bfloat16() for tensor in inputs]
    exact = gradients(alone(lengths), [tensor.double() for tensor in inputs], grad_out.bfloat16())
    for own, reference in zip(gradients(packed(lengths), inputs, grad_out), exact, strict=True):
        error = torch.linalg.norm(own - reference) / torch.linalg.norm(reference)
        assert 0 < error < 0.02  # it was computed in bfloat16, whose numbers have 8 bits


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_products_with_a_frozen_matrix_are_exact_from_both_sides(dtype, bound, is_packed):
    generator = torch.Generator().manual_seed(2)
    weight, x, grad_out, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 80), (37, 80), (37, 48), (48,))
    )
    matrix = FrozenMatrix(weight, is_packed)
    for _ in range(2):  # the second time from what the first one kept
        for found, expected in (
            (matrix.forward(x), x.double() @ weight.double().T),
            (matrix.forward(x, bias), x.double() @ weight.double().T + bias.double()),
            (matrix.backward(grad_out), grad_out.double() @ weight.double()),
        ):
            assert found.dtype == dtype
            assert torch.linalg.norm(found.double() - expected) <= bound * torch.linalg.norm(expected)


def test_only_small_models_have_their_matrices_twice(monkeypatch):
    layer = torch.nn.Linear(8, 8, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    assert FrozenMatrices(layer)._is_packed
    monkeypatch.setattr(frozen, "PACKED_BYTES", 100)
    assert not FrozenMatrices(layer)._is_packed
    assert not FrozenMatrices()._is_packed


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
FULL = {"layer_types": ["full_attention"] * 2}


def decoder_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).base_model


def loaded(config):
    decoder = decoder_of(config).eval().requires_grad_(False)
    path = decide(decoder, CPU)
    return types.SimpleNamespace(decoder=decoder, causal=decoder, fast_path=path, matrices=None, packs=False)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (transformers.LlamaConfig, {}),
        (transformers.MistralConfig, {"sliding_window": None}),
        (transformers.Qwen2Config, {}),
        (transformers.Qwen3Config, {"head_dim": 8}),
    ],
)
def test_models_of_the_llama_family_take_all_operations(config, options):
    assert decide(decoder_of(config(**SMALL | options)), CPU) == fast_path.FastPath(tuple(OPERATIONS), {})


@pytest.mark.parametrize(
    ("config", "options", "operation", "reason"),
    [
        (
            transformers.MistralConfig,
            {"sliding_window": 4096},
            ATTENTION,
            "layer 0 asks its attention for sliding",
        ),
        (
            transformers.Qwen2Config,
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            ATTENTION,
            "its layers have sliding_attention",
        ),
        (transformers.Gemma3TextConfig, {}, ATTENTION, "its layers have sliding_attention"),
        (transformers.Gemma2Config, {"head_dim": 8} | FULL, ATTENTION, "layer 0 asks its attention for softcap"),
        (transformers.GptOssConfig, {"head_dim": 8, "num_local_experts": 4} | FULL, ATTENTION, "for s_aux"),  # sinks
        (transformers.BloomConfig, {"n_head": 4}, ATTENTION, "no attention interface"),  # ALiBi
        (transformers.MptConfig, {"d_model": 32, "n_heads": 4, "n_layers": 2}, ATTENTION, "no attention interface"),
        (transformers.GPT2Config, {"n_embd": 32, "n_head": 4, "n_layer": 2}, ATTENTION, "positions are not rotary"),
        (transformers.OPTConfig, {"ffn_dim": 64, "word_embed_proj_dim": 32}, ATTENTION, "positions are not rotary"),
        (transformers.LlamaConfig, {"attention_dropout": 0.1}, ATTENTION, "for dropout 0.1"),  # in training only
        (transformers.Phi3Config, {"partial_rotary_factor": 0.5}, "rotary", "4 of the 8 dimensions"),
        (transformers.GPTNeoXConfig, {"rotary_pct": 0.25}, "rotary", "2 of the 8 dimensions"),
        (transformers.CohereConfig, {}, "rotary", "compute something else"),  # neighbours turn, not halves
        (transformers.GemmaConfig, {"head_dim": 8}, "RMSNorm", "compute something else"),  # 1 + weight
        (transformers.GemmaConfig, {"head_dim": 8}, "gated MLP", "compute something else"),  # gelu
        (transformers.GPT2Config, {"n_embd": 32, "n_head": 4, "n_layer": 2}, LINEAR, "it has no such layer"),
    ],
)
@pytest.mark.slow
def test_an_operation_that_computes_something_else_is_declined_with_the_reason(config, options, operation, reason):
    path = decide(decoder_of(config(**SMALL | options)), CPU)
    assert operation not in path.used
    assert reason in path.declined[operation]
    assert set(path.used) | set(path.declined) == set(OPERATIONS)


def test_a_model_that_has_no_small_one_keeps_all_its_own(monkeypatch):
    def broken(config):
        raise KeyError("head_size")

    monkeypatch.setattr(fast_path, "_small_config", broken)
    path = decide(decoder_of(transformers.LlamaConfig(**SMALL)), CPU)
    assert path.used == ()
    assert all("KeyError: 'head_size'" in reason for reason in path.declined.values())


def test_attention_is_for_cpus():
    path = decide(decoder_of(transformers.LlamaConfig(**SMALL)), torch.device("cuda"))
    assert path.used == tuple(name for name in OPERATIONS if name != ATTENTION)


def test_attention_that_sees_the_future_is_found_out(monkeypatch):
    monkeypatch.setattr(attention, "_later", lambda n, dtype: torch.zeros(n, n, dtype=dtype))
    assert ATTENTION in decide(decoder_of(transformers.LlamaConfig(**SMALL)), CPU).declined


def test_deciding_leaves_the_order_of_random_numbers_alone():
    decoder = decoder_of(transformers.LlamaConfig(**SMALL | {"attention_dropout": 0.1}))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    decide(decoder, CPU)
    assert torch.equal(torch.rand(1), expected)


def test_a_models_layers_differ_in_all_ways_that_the_small_one_has_too():
    config = transformers.SmolLM3Config(**SMALL | {"num_hidden_layers": 8, "no_rope_layers": [1, 1, 1, 0] * 2})
    small = fast_path._small_config(config)
    assert (small.num_hidden_layers, small.no_rope_layers) == (2, [1, 0])
    assert small.layer_types == ["full_attention"] * 2


@pytest.mark.slow
@pytest.mark.real_base
@pytest.mark.network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decision_for_the_real_base_stands_whatever_is_rounded(dtype, monkeypatch):
    """SmolLM2 amplifies rounding 40-fold at special tokens: noise of bfloat16's size once changed the decision."""
    base = bases.find("smollm2-135m", None, None, lambda message: None)
    monkeypatch.setattr(language_model, "has_bfloat16", lambda device: dtype == torch.bfloat16)
    lm = language_model.load(base, "cpu")
    generator = torch.Generator().manual_seed(6)

    def noisy(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.mul_(1 + 2**-8 * torch.randn(hidden.shape, generator=generator).to(hidden.dtype))

    handles = [layer.register_forward_hook(noisy) for layer in lm.decoder.layers]
    assert lm.fast_path == fast_path.FastPath(tuple(OPERATIONS), {})
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("config", "options"),
    [(transformers.Gemma2Config, {"head_dim": 8}), (transformers.BloomConfig, {"n_head": 4})],
)
def test_models_without_sdpa_attention_are_loaded_too_and_verbose_says_what_is_theirs(
    config, options, tiny_base, tmp_path
):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    end = tokenizer.eos_token_id
    sizes = SMALL | {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    transformers.AutoModelForCausalLM.from_config(config(**sizes | options)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = bases.describe(str(tmp_path), None, lambda message: None)
    details = []
    lm = language_model.load(bases.LocalBase(tmp_path, base), "cpu", detail=details.append)
    assert set(lm.fast_path.declined) >= {ATTENTION, "gated MLP", "RMSNorm"}
    assert [line.split(":")[0] for line in details[1:]] == list(lm.fast_path.declined)
    assert "operations linear, LoRA" in details[0]


def test_operations_are_on_the_model_for_the_time_of_the_block():
    lm = loaded(transformers.LlamaConfig(**SMALL))
    before = lm.decoder.config._attn_implementation
    with fast_path.fast_path(lm, ATTENTION):  # a measurement
        assert lm.packs
        assert lm.decoder.config._attn_implementation == attention.NAME
        assert "forward" not in vars(lm.decoder.layers[0].mlp)
    with fast_path.fast_path(lm):  # a training
        matrices = lm.matrices
        assert "forward" in vars(lm.decoder.layers[0].mlp)
        with fast_path.fast_path(lm, ATTENTION):  # a measurement within
            assert lm.matrices is matrices
        assert lm.packs
    assert not lm.packs
    assert lm.matrices is None
    assert lm.decoder.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in lm.decoder.modules())


@pytest.mark.parametrize("config", [transformers.LlamaConfig, transformers.Qwen3Config])
@pytest.mark.slow
def test_a_models_hidden_states_and_gradients_stay_the_same(config):
    lm = loaded(config(**SMALL))
    lm.decoder.double()
    embedded, grad_hidden = torch.randn(2, 1, 20, 32, generator=torch.Generator().manual_seed(4)).double()

    def run():
        inputs = embedded.clone().requires_grad_()
        hidden = lm.decoder(inputs_embeds=inputs, use_cache=False, position_ids=torch.arange(20)[None])
        hidden.last_hidden_state.backward(grad_hidden)
        return hidden.last_hidden_state.detach(), inputs.grad

    plain = run()
    with fast_path.fast_path(lm):
        assert lm.packs
        assert "forward" in vars(lm.decoder.layers[0].mlp)
        ours = run()
    for own, other in zip(ours, plain, strict=True):
        assert torch.linalg.norm(own - other) <= 1e-5 * torch.linalg.norm(other)


def test_padding_stays_within_the_positions_that_a_model_knows():
    lm = types.SimpleNamespace(decoder=decoder_of(transformers.LlamaConfig(**SMALL | {"max_position_embeddings": 29})))
    assert loss._aligned(lm, 9) == 16
    assert loss._aligned(lm, 27) == 29
    assert loss._aligned(lm, 29) == 29


@pytest.mark.parametrize(
    ("flags", "highest", "expected"),
    [
        (("avx2", "fma3"), "", "AVX2"),
        (("avx2", "fma3", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"), "", "AVX512"),
        ("all", "", "AMX"),
        ("all", "ALL", "AMX"),
        ("all", "AVX512_CORE_AMX", "AMX"),
        ("all", "AVX512_CORE_BF16", "AVX512-BF16"),
        ("all", "avx512_core", "AVX512"),
        ("all", "AVX2", "AVX2"),
        (("avx2", "fma3"), "AVX512_CORE_BF16", "AVX2"),
    ],
)
def test_the_class_of_a_cpu_goes_by_its_flags_and_onednns_switch(flags, highest, expected, monkeypatch):
    every = {flag for needed in cpu.CLASSES.values() for flag in needed}
    has = every if flags == "all" else set(flags)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", highest)
    assert cpu.cpu_class() == expected
    monkeypatch.setattr(cpu, "_is_intel", lambda: False)
    assert cpu.has_bfloat16() is (expected in ("AMX", "AVX512-BF16"))
    monkeypatch.setattr(cpu, "_is_intel", lambda: True)  # whose AVX512-BF16 is slower than its float32
    assert cpu.has_bfloat16() is (expected == "AMX")
