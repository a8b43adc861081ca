"""rsLoRA, rank_pattern and alpha_pattern: fedmed combines what PEFT writes, and PEFT loads what comes out."""

import json
import math

import numpy as np
import peft
import pytest
import torch
from helpers import factories
from helpers.tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.adapters.gate import read_from_anyone
from fedmed_cli.adapters.low_rank import cut_to_rank
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.cli.app import main
from fedmed_cli.models import bases
from fedmed_cli.models.engines.llama_cpp import LlamaCpp
from fedmed_cli.records.lora import Lora, pattern_of, resolve
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training
from fedmed_cli.workspace import Workspace

PATTERNS = {
    "rank_pattern": {"k_proj": 2, "layers.0.self_attn.q_proj": 6},
    "alpha_pattern": {"model.layers.1.mlp.down_proj": 3.0, "q_proj": 5.0},
}
KINDS = {"plain": {}, "rslora": {"use_rslora": True}, "patterns": PATTERNS, "both": {"use_rslora": True} | PATTERNS}
TARGETS = ("q_proj", "k_proj", "down_proj")


def make_plan(base, **lora):
    return Plan(base, Lora(4, 8.0, TARGETS, **lora), Prompt(), Training(), Sites(("A", "B", "C"), 1, {"B": 3}))


def saved_by_peft(folder, tiny_base, plan, base_name, seed):
    """An adapter with random factors as PEFT itself makes, names, scales and saves it; and its logits."""
    config = factories.peft_config(plan.lora)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder, save_embedding_layers=False)
    return logits(model)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(2, 40)[None]).logits


def loaded_by_peft(folder, tiny_base, adapter):
    factories.write_adapter(folder, adapter)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(model, folder)
    for module in adapter.factors:
        layer = loaded.get_base_model().get_submodule(module)
        assert math.isclose(layer.scaling["default"], adapter.scale(module))
    return logits(loaded)


@pytest.mark.parametrize("rule", ["svd", "stack"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_site_and_identical_sites_give_the_logits_that_peft_gave(kind, rule, tiny_base, tmp_path):
    plan = make_plan(bases.describe(str(tiny_base), None, print), **KINDS[kind])
    expected = saved_by_peft(tmp_path / "site", tiny_base, plan, plan.base.name, 1)
    site = read_from_anyone(tmp_path / "site", plan).adapter
    start = plan_adapter(plan, initial_factors(plan))
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))
    assert (expected - base).abs().max() > 0.01
    for number, weights in enumerate(([1.0], [0.2, 0.5, 0.3])):
        result, _ = COMBINE[rule](plan, start, [site] * len(weights), weights, None)
        found = loaded_by_peft(tmp_path / str(number), tiny_base, result)
        assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_stacked_adapter_has_the_logits_of_the_dense_mean(kind, tiny_base, tmp_path):
    plan = make_plan(bases.describe(str(tiny_base), None, print), **KINDS[kind])
    sites, weights = [], [0.6, 0.4]
    dense = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    for seed, weight in enumerate(weights):
        saved_by_peft(tmp_path / f"site{seed}", tiny_base, plan, plan.base.name, seed)
        sites.append(read_from_anyone(tmp_path / f"site{seed}", plan).adapter)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        merged = peft.PeftModel.from_pretrained(model, tmp_path / f"site{seed}").merge_and_unload()
        clean = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        for module in plan.modules:
            change = merged.get_submodule(module).weight.data - clean.get_submodule(module).weight.data
            dense.get_submodule(module).weight.data += weight * change
    result, _ = COMBINE["stack"](plan, plan_adapter(plan, initial_factors(plan)), sites, weights, None)
    found = loaded_by_peft(tmp_path / "stack", tiny_base, result)
    assert (found - logits(dense)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_site_of_a_lower_rank_starts_from_loads_with_peft_at_the_same_scaling(kind, tiny_base, tmp_path):
    plan = make_plan(bases.describe(str(tiny_base), None, print), **KINDS[kind])
    rng = np.random.default_rng(2)
    factors = {m: (a, rng.normal(0, 0.05, b.shape).astype(np.float32)) for m, (a, b) in initial_factors(plan).items()}
    whole = plan_adapter(plan, factors)
    start = cut_to_rank(whole, plan.rank_of("B"))
    assert start.max_rank == 3
    loaded_by_peft(tmp_path / "B", tiny_base, start)
    for module in plan.modules:
        assert start.scale(module) == pytest.approx(whole.scale(module))
        assert plan_adapter(plan, start.factors, start.r).digest == start.digest


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_gives_every_module_its_own_scaling(kind, tiny_base, tmp_path):
    base = bases.describe(str(tiny_base), None, print)
    plan = make_plan(base, **KINDS[kind])
    logits = saved_by_peft(tmp_path / "site", tiny_base, plan, plan.base.name, 1)
    adapter = read_from_anyone(tmp_path / "site", plan).adapter
    expected = torch.log_softmax(logits[0, :-1].float(), -1)[torch.arange(37), torch.arange(3, 40)]
    engine = LlamaCpp(write_gguf(tmp_path / "tiny.gguf", tiny_base), bases.LocalBase(tiny_base, base))
    engine.prepare([adapter])
    found, plain = (engine.log_probabilities(list(range(2, 40)), 1, which) for which in (adapter, None))
    engine.close()
    assert found == pytest.approx(expected.tolist(), abs=0.02)
    assert np.abs(np.subtract(found, plain)).max() > 0.1


@pytest.mark.slow
def test_two_rounds_with_rslora_patterns_and_a_site_of_lower_rank(tiny_base, tmp_path, fails, capsys):
    argv = [
        "split",
        "-q",
        "-C",
        str(tmp_path),
        "--base",
        str(tiny_base),
        "--limit",
        "60",
        "--by",
        "iid",
        "--lora-r",
        "4",
    ]
    argv += ["--max-steps", "2", "--max-length", "128", "--use-rslora", "--lora-target-modules", "q_proj,v_proj"]
    argv += ["--rank-pattern", "v_proj=2,model.layers.0.self_attn.q_proj=6", "--alpha-pattern", "v_proj=3"]
    assert main(argv) == 0
    place = Workspace(tmp_path)
    text = place.plan_path.read_text()
    assert "[lora.rank_pattern]" in text
    assert "use_rslora = true" in text
    place.plan_path.write_text(text.rstrip() + "\n[sites.ranks]\nB = 3\n")
    plan = place.read_plan()
    assert plan.rank_of("B") == 3
    assert plan.rank_of("A") == 6
    assert main(["round", "-q", "-C", str(tmp_path), "--base", str(tiny_base), "--rounds", "2"]) == 0
    assert main(["verify", "-q", "-C", str(tmp_path)]) == 0
    capsys.readouterr()
    final = gate.read_global(place.global_adapter(2), plan).adapter
    assert final.config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 6, "v_proj": 2}
    lower = read_from_anyone(place.round(2) / "B", plan).adapter
    assert {lower.rank(module) for module in plan.modules} == {2, 3}
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    before = logits(model)
    after = logits(peft.PeftModel.from_pretrained(model, place.global_adapter(2)))
    assert (after - before).abs().max() > 1e-5
    assert main(["inspect-adapter", str(place.global_adapter(2)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"]["alpha_pattern"] == {"v_proj": 3.0}
    told = ["split", "-C", tmp_path, "--rank-pattern", "v_proj=4"]
    assert fails(2, *told) == (
        "--rank-pattern is v_proj=4, but the plan has model.layers.0.self_attn.q_proj=6,v_proj=2"
    )


@pytest.mark.slow
def test_a_round_where_every_module_has_another_rank_than_the_general_one(tiny_base, tmp_path):
    for name, pattern in (("below", "q_proj=3,v_proj=2"), ("above", "q_proj=12,v_proj=16")):
        argv = ["split", "-q", "-C", str(tmp_path / name), "--base", str(tiny_base), "--limit", "60", "--by", "iid"]
        argv += ["--max-steps", "1", "--max-length", "128", "--rank-pattern", pattern]
        assert main(argv) == 0
        assert main(["round", "-q", "-C", str(tmp_path / name), "--base", str(tiny_base), "--rounds", "2"]) == 0
        assert main(["verify", "-q", "-C", str(tmp_path / name)]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank-pattern", "v_proj"], "--rank-pattern: expected comma-separated MODULE=NUMBER, found 'v_proj'"),
        (["--rank-pattern", "v_proj=x"], "--rank-pattern: expected comma-separated MODULE=NUMBER, found 'v_proj=x'"),
        (["--rank-pattern", "v_proj=2,v_proj=3"], "--rank-pattern: 'v_proj' appears twice"),
        (["--rank-pattern", "nothing=2"], "lora.rank_pattern: 'nothing' means no target module"),
        (["--rank-pattern", "v_proj=200000"], "lora.rank_pattern.v_proj must be from 1 to 65536, found 200000"),
        (["--rank-pattern", "v_proj=1000"], "lora.rank_pattern is 1000, but target module"),
        (["--alpha-pattern", "v_proj=nan"], "lora.alpha_pattern.v_proj must be from 1e-06 to 65536, found nan"),
        (["--lora-alpha", "1e-300"], "lora.alpha must be from 1e-06 to 65536, found 1e-300"),
        (["--alpha-pattern", ".*=2"], "lora.alpha_pattern: '.*' is not a module name"),
        (
            ["--alpha-pattern", "v_proj=2,self_attn.v_proj=3"],
            "lora.alpha_pattern: 'v_proj' and 'self_attn.v_proj' both mean model.layers.0.self_attn.v_proj",
        ),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(options, said, tiny_base, tmp_path, fails):
    assert said in fails(2, "init", "-C", tmp_path, "--names", "A,B", "--base", tiny_base, *options)


def test_patterns_are_written_by_the_last_part_of_the_name_where_that_is_enough():
    values = {"a.q": 1, "b.q": 1, "a.v": 2, "b.v": 3, "a.k": 1, "b.k": 4}
    found = pattern_of(values, 1)
    assert found == {"a.v": 2, "b.v": 3, "b.k": 4}
    assert pattern_of(values, 5) == {"q": 1} | found | {"a.k": 1}
    assert resolve(found, values) == {"a.v": 2, "b.v": 3, "b.k": 4}
    assert resolve({"q": 7, "b.k": 8}, values) == {"a.q": 7, "b.q": 7, "b.k": 8}


def test_a_plan_in_which_one_module_is_the_end_of_another_takes_no_patterns():
    linear = {"proj": (8, 8), "block.proj": (8, 8), "other": (8, 8)}
    base = Base("x", "", "0" * 64, 1000, linear)
    targets = ("proj", "other")
    Plan(base, Lora(4, 8.0, targets), Prompt(), Training(), Sites(("A",), 1))
    with pytest.raises(ValueError, match=r"'proj' and 'block[.]proj' both mean"):
        Plan(base, Lora(4, 8.0, targets, False, {"other": 3}), Prompt(), Training(), Sites(("A",), 1))


def test_module_names_of_many_parts_are_no_names():
    with pytest.raises(ValueError, match="is not a module name"):
        Base("x", "", "0" * 64, 1000, {"a." * 21 + "q_proj": (8, 8)})
    with pytest.raises(ValueError, match="is not a module name"):
        Lora(rank_pattern={"a." * 21 + "q_proj": 2})


@pytest.mark.parametrize("lora", [{"alpha": 40_000.0}, {"alpha": 8.0, "alpha_pattern": {"q_proj": 60_000.0}}])
def test_a_stack_of_very_many_sites_passes_the_gate(lora, tmp_path):
    base = Base("x", "", "0" * 64, 1000, {"model.q_proj": (1100, 1100), "model.v_proj": (8, 8)})
    plan = Plan(base, Lora(8, targets=("q_proj", "v_proj"), **lora), Prompt(), Training(), Sites(("A",), 1))
    start = plan_adapter(plan, initial_factors(plan))
    sites = []
    for seed in range(129):
        rng = np.random.default_rng(seed)
        factors = {m: (a, rng.normal(0, 1e-5, b.shape).astype(np.float32)) for m, (a, b) in start.factors.items()}
        sites.append(plan_adapter(plan, factors))
    result, _ = COMBINE["stack"](plan, start, sites, [1 / 129] * 129, None)
    assert result.r == 1032
    factories.write_adapter(tmp_path, result)
    assert read_from_anyone(tmp_path).adapter.digest == result.digest
