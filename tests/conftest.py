"""A tiny Llama with its own tokenizer, and workspaces made with it."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# rich and typer read these, some of them when they are imported.
for name in (
    *("COLORTERM", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "NO_COLOR", "PY_COLORS", "TERMINAL_WIDTH"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "TYPER_USE_RICH"),
):
    os.environ.pop(name, None)

from fedmed_cli.cli.app import main  # noqa: E402
from fedmed_cli.data import corpus  # noqa: E402
from fedmed_cli.records.plan import Plan  # noqa: E402
from fedmed_cli.workspace import Workspace  # noqa: E402

# No test depends on how fast a machine is, or on what else runs there.
settings.register_profile("fedmed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedmed")

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NUM_EXAMPLES = 240


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory):
    """Nothing of the user's settings reaches a test, and the cache of real base models is kept."""
    for name in [name for name in os.environ if name.startswith("FEDMED_") and name != "FEDMED_CACHE"]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["FEDMED_CONFIG"] = str(tmp_path_factory.mktemp("config"))  # no key of the user signs a test


def make_tiny_llama(folder, seed=0):
    """A Llama of 2 layers with grouped-query attention and a byte-level BPE, in the form of a model folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [row["answer"] for row in corpus.examples()[:400]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def float32():
    """Models in float32, whatever this CPU multiplies, where a reference is computed in float32."""
    from fedmed_cli.models import language_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "has_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_base, tmp_path_factory):
    """The same model as a file of llama.cpp's."""
    from helpers.tiny_gguf import write_gguf

    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_base)


@pytest.fixture(scope="session")
def split_once(tiny_base, tmp_path_factory):
    """A workspace of three hospitals before any round; tests copy it."""
    root = tmp_path_factory.mktemp("split") / "work"
    argv = ["split", "-q", "-C", str(root), "--base", str(tiny_base), "--limit", str(NUM_EXAMPLES), "--by", "iid"]
    argv += ["--lora-r", "4", "--learning-rate", "1e-2", "--max-steps", "3", "--max-length", "256"]
    assert main(argv) == 0
    return root


@pytest.fixture
def split_workspace(split_once, tmp_path):
    return Workspace(shutil.copytree(split_once, tmp_path / "work"))


@pytest.fixture(scope="session")
def round_once(split_once, tiny_base, tmp_path_factory):
    """The same workspace after one round; tests copy it."""
    root = shutil.copytree(split_once, tmp_path_factory.mktemp("round") / "work")
    assert main(["round", "-q", "-C", str(root), "--base", str(tiny_base)]) == 0
    return root


@pytest.fixture
def round_workspace(round_once, tmp_path):
    return Workspace(shutil.copytree(round_once, tmp_path / "work"))


@pytest.fixture(scope="session")
def trained_once(split_once, tiny_base, tmp_path_factory):
    """The same workspace with three contributions that are not yet aggregated; tests copy it."""
    root = shutil.copytree(split_once, tmp_path_factory.mktemp("trained") / "work")
    for site in "ABC":
        assert main(["train-local", "-q", "--site", site, "-C", str(root), "--base", str(tiny_base)]) == 0
    return root


@pytest.fixture
def trained_workspace(trained_once, tmp_path):
    return Workspace(shutil.copytree(trained_once, tmp_path / "work"))


@pytest.fixture
def coordinators_key(tmp_path, monkeypatch):
    """The folder of the user's settings, with the key of the factories' coordinator in its default place."""
    from helpers import factories

    folder = tmp_path / "config"
    folder.mkdir()
    factories.write_key(folder / "id_ed25519", factories.SIGNERS["coordinator"])
    monkeypatch.setenv("FEDMED_CONFIG", str(folder))
    return folder


@pytest.fixture
def fails(capsys):
    """Run a command that must fail: its exit code, an empty stdout and a one-line error are checked."""

    def run(code, *argv):
        capsys.readouterr()
        found = main([str(part) for part in argv])
        out, err = capsys.readouterr()
        assert found == code, err
        assert out == ""
        errors = [line for line in err.splitlines() if line.startswith("fedmed: error: ")]
        assert len(errors) == 1, err
        assert all(
            line.startswith("fedmed: hint: ") for line in err.splitlines()[err.splitlines().index(errors[0]) + 1 :]
        )
        return errors[0].removeprefix("fedmed: error: ")

    return run


def reseal(folder, **changes):
    """Edit a contribution's record and make its digests hold again, as an attacker who controls a site would."""
    from fedmed_cli.adapters import gate
    from fedmed_cli.records.digests import sha256_bytes

    record = json.loads((folder / "contribution.json").read_text())
    (folder / "contribution.json").unlink()
    now = gate.read_from_anyone(folder)
    record["files"] = {name: sha256_bytes(data) for name, data in now.files.items()}
    record["adapter"] = now.adapter.digest
    record |= changes
    (folder / "contribution.json").write_text(json.dumps(record))


def change_factors(folder, plan: Plan, change):
    """Replace a contribution's factors: `change(module, A, B)` gives the new pair."""
    from fedmed_cli.adapters import gate
    from fedmed_cli.adapters.adapter import plan_adapter

    adapter = gate.read_from_anyone(folder).adapter
    factors = {
        module: tuple(np.asarray(part, dtype=np.float32) for part in change(module, a, b))
        for module, (a, b) in adapter.factors.items()
    }
    new = plan_adapter(plan, factors)
    (folder / "adapter_model.safetensors").write_bytes(new.weights_bytes)
    reseal(folder)
