"""What fedmed writes loads with plain PEFT."""

import numpy as np
from helpers.factories import write_adapter
from helpers.plain import loaded_logits

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training


def test_an_adapter_folder_loads_with_plain_peft_without_missing_or_unexpected_keys(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).eval()
    attention = "model.layers.*.self_attn."
    linear = {attention + "q_proj": (16, 16, 2), attention + "v_proj": (8, 16, 2)}
    plan = Plan(Base("tiny", "", "0" * 64, 1000, linear), Lora(r=4, alpha=8.0), Prompt(), Training(), Sites(("A",), 1))
    rng = np.random.default_rng(0)
    factors = {m: (a, rng.normal(size=b.shape).astype(np.float32)) for m, (a, b) in initial_factors(plan).items()}
    adapter = plan_adapter(plan, factors)
    write_adapter(tmp_path, adapter)
    loaded_logits(model, tmp_path, torch.arange(10)[None])
