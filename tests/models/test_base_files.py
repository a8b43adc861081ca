"""The base model is what its fingerprint says: what is hashed is what is loaded, whatever else lies in the folder."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.models import base_files, bases, language_model
from fedmed_cli.models.prompts import prompt_ids

MESSAGES = [{"role": "user", "content": "What is <|x|> asthma, and how  is it treated?"}]
OTHER_TEMPLATE = "{{ messages[0]['content'] }} as I say:"


@pytest.fixture
def folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMED_CACHE", str(tmp_path / "cache"))


def describe(folder):
    return bases.find(str(folder), None, None, print)


def altered(folder):
    weights = load_file(folder / "model.safetensors")
    return {name: tensor * -3.0 if "mlp" in name else tensor for name, tensor in weights.items()}


def save(path, tensors):
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, **values):
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def honest_copy_beside(folder):
    shutil.copy(folder / "model.safetensors", folder / "zz.safetensors")
    save(folder / "model.safetensors", altered(folder))


def index_beside(folder):
    """An index that names altered weights; the single file goes first, and stays honest."""
    save(folder / "aa.safetensors", altered(folder))
    places = dict.fromkeys(load_file(folder / "aa.safetensors"), "aa.safetensors")
    (folder / base_files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def index_instead(folder):
    index_beside(folder)
    (folder / "model.safetensors").rename(folder / "zz.safetensors")


def default_template(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(OTHER_TEMPLATE)


def adapter_beside(folder):
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(folder)


def split_token(folder):
    added = {"0": {"content": "<|start|>", "special": True, "lstrip": True, "rstrip": True, "single_word": True}}
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=added)


PROBES = {
    "an honest copy under a later name": honest_copy_beside,
    "an index beside the file": index_beside,
    "an index instead of the file": index_instead,
    "an additional template": default_template,
    "another template": lambda f: (f / "chat_template.jinja").write_text(OTHER_TEMPLATE),
    "added tokens": lambda f: (f / "added_tokens.json").write_text(json.dumps({"asthma": 0})),
    "a map of special tokens": lambda f: (f / "special_tokens_map.json").write_text(json.dumps({"eos_token": "the"})),
    "decoders of added tokens": split_token,
    "extra special tokens": lambda f: change_json(f / "tokenizer_config.json", extra_special_tokens=["asthma"]),
    "another class": lambda f: change_json(f / "tokenizer_config.json", tokenizer_class="GPT2TokenizerFast"),
    "another length": lambda f: change_json(
        f / "tokenizer_config.json", model_max_length=5, truncation_side="left", split_special_tokens=True
    ),
    "an adapter beside": adapter_beside,
    "other defaults of generation": lambda f: change_json(f / "generation_config.json", eos_token_id=[5, 6]),
}


def behaviour(local):
    """Token ids, prompt and logits: all that a base model is to fedmed."""
    lm = language_model.load(local, "cpu")
    ids = prompt_ids(MESSAGES, lm.tokenizer)
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([ids])).logits
    return ids, lm.tokenizer("a  b <|start|> c")["input_ids"], lm.model.generation_config.eos_token_id, logits


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.slow
def test_a_changed_folder_is_refused_or_loads_as_the_plans_base(name, folder, tiny_base):
    honest = describe(tiny_base)
    PROBES[name](folder)
    try:
        found = bases.find_for_plan(honest.base, str(folder), None, print)
    except CombineError:  # another fingerprint
        return
    expected = behaviour(honest)
    for one, other in zip(behaviour(found), expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_two_of_the_probes_change_what_plain_transformers_load(folder, tiny_base):
    """Else the test above could not fail."""
    honest_copy_beside(folder)
    default_template(folder)
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    assert plain.apply_chat_template(MESSAGES, tokenize=False) == OTHER_TEMPLATE.replace(
        "{{ messages[0]['content'] }}", MESSAGES[0]["content"]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(
        model.model.layers[0].mlp.up_proj.weight,
        load_file(tiny_base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"],
    )


def shard(folder, places):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    found = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for part in set(found.values()):
        save(folder / part, {name: weights[name] for name in names if found[name] == part})
    index = {"metadata": {"total_size": 0}, "weight_map": places(found, names)}
    (folder / base_files.INDEX).write_text(json.dumps(index))


def test_shards_have_the_fingerprint_of_one_file(folder, tiny_base):
    shard(folder, lambda found, names: found)
    assert describe(folder).base.fingerprint == describe(tiny_base).base.fingerprint
    one, other = behaviour(describe(folder)), behaviour(describe(tiny_base))
    assert torch.equal(one[-1], other[-1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("two places", r"part-\d.safetensors: model.safetensors.index.json places other tensors here than it holds"),
        ("not named", r"part-0.safetensors: model.safetensors.index.json places other tensors here than it holds"),
        ("elsewhere", r"places a tensor in '../part-0.safetensors', expected a safetensors file here"),
        ("no file", r"part-7.safetensors: cannot be read \(No such file or directory\)"),
    ],
)
def test_an_index_that_does_not_say_what_the_files_hold(fault, message, folder):
    def places(found, names):
        return {
            "two places": found | {names[0]: "part-1.safetensors"},
            "not named": {name: part for name, part in found.items() if name != names[0]},
            "elsewhere": found | {names[0]: "../part-0.safetensors"},
            "no file": {name: part.replace("-1.", "-7.") for name, part in found.items()},
        }[fault]

    shard(folder, places)
    with pytest.raises(InputError, match=message):
        describe(folder)


def test_only_what_was_hashed_is_in_the_folder_that_is_loaded(folder):
    for name in ("pytorch_model.bin", "modeling_evil.py", "zz.safetensors", "notes.txt", "adapter_config.json"):
        (folder / name).write_bytes(b"x")
    local = describe(folder)
    assert {path.name for path in local.folder.iterdir()} <= {
        base_files.WEIGHTS,
        *base_files.JSON_FILES,
        *base_files.OTHER_FILES,
    }
    assert (local.folder / base_files.WEIGHTS).samefile(folder / base_files.WEIGHTS)


def test_a_change_after_the_first_look_is_noticed(folder):
    honest = describe(folder)
    honest_copy_beside(folder)
    with pytest.raises(CombineError, match="fingerprint"):
        bases.find_for_plan(honest.base, str(folder), None, print)


def test_another_number_of_bytes_is_refused(folder):
    import dataclasses

    base = dataclasses.replace(describe(folder).base, num_bytes=1)
    with pytest.raises(CombineError, match="expects 1 bytes of weights"):
        bases.find_for_plan(base, str(folder), None, print)
