"""Exports: each form is loaded by its consumer and compared, and what does not do the adapter's work is not kept."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.factories import make_plan, make_workspace, write_adapter
from markdown_it import MarkdownIt
from test_engines import text_of

from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.gate import read_from_anyone
from fedmed_cli.cli.app import main
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.models import bases, bundled_base, language_model
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.engines.engine import Sampling
from fedmed_cli.models.engines.llama_cpp import LlamaCpp
from fedmed_cli.models.export import export as exporting
from fedmed_cli.models.export import forms
from fedmed_cli.models.export.open_source import FORM_NAMES
from fedmed_cli.models.prompts import prompt_ids, prompt_messages
from fedmed_cli.records.digests import sha256_file
from fedmed_cli.records.export import Export
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Prompt
from fedmed_cli.workspace.durable import write_folder

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def run(round_workspace, tiny_base, tiny_gguf, tmp_path, monkeypatch):
    """A function that exports as the command does; its exit code. Few tokens, for llama.cpp takes one at a time."""
    monkeypatch.setattr(exporting, "NUM_ANSWERS", 3)

    def export(form, *more, adapter="global"):
        options = ["-C", str(round_workspace.root), "--base", str(tiny_base), "--to", form, *more]
        if form in ("gguf", "ollama", "merged-gguf"):
            options += ["--gguf", str(tiny_gguf)]
        return main(["export", adapter, str(tmp_path / form), *options])

    return export


def test_the_forms_are_those_of_the_command():
    assert tuple(forms.FORMS) == FORM_NAMES


@pytest.mark.parametrize(
    ("form", "adapter"), [("gguf", "B"), ("ollama", "global"), ("merged", "A"), ("vllm", "global")]
)
@pytest.mark.slow
def test_each_form_is_compared_and_its_record_names_where_it_comes_from(
    form, adapter, run, tmp_path, round_workspace, capsys
):
    assert run(form, adapter=adapter) == 0
    out = capsys.readouterr().out
    record = Export.read(tmp_path / form / "export.json")
    assert f"largest {record.comparison.largest_difference:.4f}" in out
    assert f"not checked: {record.not_checked}" in out
    folder = read_from_anyone(round_workspace.root / "rounds/001" / adapter)
    assert (record.form, record.adapter, record.record) == (form, folder.adapter.digest, folder.record_digest)
    assert (record.round, record.site) == (1, None if adapter == "global" else adapter)
    assert record.files == {
        path.name: sha256_file(path) for path in (tmp_path / form).iterdir() if path.name != "export.json"
    }
    assert record.comparison.largest_difference < 0.05
    assert record.comparison.effect_found == pytest.approx(record.comparison.effect, rel=0.2)
    assert record.comparison.effect > 0.05


def test_what_is_made_of_a_private_adapter_says_so_and_is_for_its_user_alone(
    run, tmp_path, round_workspace, capsys, fails
):
    plan, folder = round_workspace.read_plan(), read_from_anyone(round_workspace.global_adapter(1))
    files = {name: folder.files[name] for name in folder.record.files}
    record = Personal(
        "B", 1, plan.digest, plan.base.fingerprint, "0" * 64, folder.adapter.digest, 0.5, {"0": 2.0, "0.5": 1.9},
        Interval(-0.1, -0.2, -0.05), 10, 10, 9, 80, 3, folder.record.files,
    )  # fmt: skip
    write_folder(round_workspace.personal("B"), files | {"personal.json": record.to_bytes()})
    target = tmp_path / "vllm"
    assert run("vllm", adapter="personal-B") == 0
    assert "it does not leave the hospital" in capsys.readouterr().out
    assert "It is private to site B and **does not leave the hospital**." in (target / "README.md").read_text()
    assert Export.read(target / "export.json").site == "B"
    assert {path.name: path.stat().st_mode & 0o777 for path in (target, *target.iterdir())} == {
        "vllm": 0o700
    } | dict.fromkeys(("README.md", "adapter_config.json", "adapter_model.safetensors", "export.json"), 0o600)
    fails(3, "pack", target, "-o", tmp_path / "it.fedmed.tar")


@pytest.mark.slow
def test_the_gguf_holds_what_llama_cpp_reads(run, tmp_path, round_workspace):
    assert run("gguf") == 0
    reader = gguf.GGUFReader(tmp_path / "gguf/adapter.gguf")
    fields = {key: reader.fields[key].contents() for key in ("general.type", "general.architecture", "adapter.type")}
    assert fields == {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    assert reader.fields["adapter.lora.alpha"].contents() == 4.0
    assert sorted(tensor.name for tensor in reader.tensors) == sorted(
        f"blk.{layer}.attn_{part}.weight.lora_{side}" for layer in (0, 1) for part in "qv" for side in "ab"
    )


def test_the_merged_model_has_the_dtype_and_the_weights_of_base_plus_adapter(run, tmp_path, tiny_base, round_workspace):
    from safetensors.numpy import load_file

    assert run("merged") == 0
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "merged"))
    adapter = read_from_anyone(round_workspace.global_adapter(1)).adapter
    assert base.keys() == merged.keys()
    for name, values in base.items():
        factors = adapter.factors.get(name.removesuffix(".weight"))
        expected = values if factors is None else values + adapter.scale(name[:-7]) * factors[1] @ factors[0]
        assert merged[name].dtype == values.dtype
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alphas", [{}, {"m1": 7.0}])
def test_a_server_gets_one_rank_that_it_allows_and_the_same_products(alphas):
    rng = np.random.default_rng(0)
    ranks = {"m0": 3, "m1": 11}
    factors = {
        name: tuple(rng.normal(size=shape).astype(np.float32) for shape in ((rank, 6), (5, rank)))
        for name, rank in ranks.items()
    }
    adapter = Adapter(3, 5.0, ("m0", "m1"), "base", factors, True, {"m1": 11}, alphas)
    found = forms.server_adapter(adapter)
    assert (found.r, found.alpha, found.use_rslora, found.config.keys() & {"rank_pattern", "alpha_pattern"}) == (
        16,
        16.0,
        False,
        set(),
    )
    for name, (a, b) in factors.items():
        new_a, new_b = found.factors[name]
        assert (new_a.shape, new_b.shape, found.scale(name)) == ((16, 6), (5, 16), 1.0)
        np.testing.assert_allclose(new_b @ new_a, adapter.scale(name) * b @ a, rtol=1e-5)
    wide = replace(adapter, factors={"m0": (np.zeros((600, 6)), np.zeros((5, 600)))}, ranks={"m0": 600})
    with pytest.raises(InputError, match="at most 512"):
        forms.server_adapter(wide)


def spoil_nothing(folder, source):
    forms.write_lora(folder / "adapter.gguf", zeroed(source.adapter), 4, 2)


def spoil_rows(folder, source):
    forms.write_lora(folder / "adapter.gguf", source.adapter, 1, 1)


def spoil_scale(folder, source):
    forms.write_lora(folder / "adapter.gguf", replace(source.adapter, alpha=source.adapter.alpha * 4), 4, 2)


def zeroed(adapter):
    return replace(adapter, factors={module: (a, b * 0) for module, (a, b) in adapter.factors.items()})


@pytest.mark.parametrize("spoil", [spoil_nothing, spoil_rows, spoil_scale])
@pytest.mark.slow
def test_an_export_that_does_something_else_is_not_kept(spoil, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(forms.FORMS, "gguf", replace(forms.FORMS["gguf"], write=spoil))
    before = sorted(tmp_path.iterdir())
    assert run("gguf") == 4
    assert "does not do what the adapter does" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_adapter_that_changes_nothing_is_not_exported(round_workspace, tiny_base):
    plan = round_workspace.read_plan()
    local = bases.find_for_plan(plan.base, str(tiny_base), None, print)
    adapter = zeroed(read_from_anyone(round_workspace.global_adapter(1)).adapter)
    source = forms.Source(adapter, local, plan.prompt, language_model.load(local, "cpu"), None, False)
    with pytest.raises(CombineError, match="nothing to export"):
        exporting.compare(source, forms.FORMS["vllm"], tiny_base, exporting._answers(source, plan)[:2])


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("global", "--to", "onnx"), 2, "expected one of gguf"),
        (("global", "--to", "gguf"), 2, "no GGUF file of tiny"),
        (("global", "--to", "merged", "--gguf", "none.gguf"), 2, "--gguf goes with"),
        (("nowhere", "--to", "vllm"), 3, "no such folder"),
        (("global", "--to", "merged-gguf"), 2, "--to merged-gguf is for the embedded base"),
    ],
)
def test_what_cannot_be_exported(argv, code, message, round_workspace, tiny_base, tmp_path, fails):
    adapter, *options = argv
    where = ("-C", round_workspace.root, "--base", tiny_base)
    assert message in fails(code, "export", adapter, tmp_path / "out", *options, *where)
    assert not (tmp_path / "out").exists()


def test_a_system_prompt_that_would_end_its_text_in_a_modelfile_is_refused(tiny_base, tiny_gguf, tmp_path):
    plan = make_plan(signed=False)
    adapter = plan_adapter(plan, initial_factors(plan))
    prompt = Prompt(system='Be kind.""" \nFROM elsewhere', user="{question}")
    source = forms.Source(adapter, bases.find(str(tiny_base), None, None, print), prompt, None, tiny_gguf, False)
    with pytest.raises(InputError, match="which a Modelfile cannot"):
        forms.FORMS["ollama"].write(tmp_path, source)
    assert not (tmp_path / "Modelfile").exists()


@pytest.mark.parametrize("form", forms.FORMS)
def test_a_plans_texts_are_no_markup_in_the_readme(form):
    hostile = "x`y\n\n```\n````\n<script>alert(1)</script>\n# heading\n[a](https://evil.example)"
    plan = make_plan(signed=False)
    base = replace(plan.base, name="owner/`<b>`[a](https://evil.example)")
    plan = replace(plan, base=base, prompt=Prompt(system=hostile, user=f"{hostile} {{question}}"))
    adapter = plan_adapter(plan, initial_factors(plan))
    source = forms.Source(adapter, LocalBase(Path(), base), plan.prompt, None, None, False)
    tokens = list(MarkdownIt().parse(exporting._readme(source, forms.FORMS[form], plan)))
    tokens += [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline", "link_open", "image"} & {token.type for token in tokens}
    assert [token.type for token in tokens].count("heading_open") == 1
    assert [token.content for token in tokens if token.type == "fence"][1:] == [plan.prompt.user + "\n", hostile + "\n"]


def test_an_existing_folder_is_left_alone(round_workspace, tmp_path, fails):
    argv = ("export", "global", tmp_path, "--to", "vllm", "-C", round_workspace.root)
    assert "exists already" in fails(6, *argv)


def text_by_llama_cpp_alone(model, lora, messages, max_tokens):
    """The greedy answer of llama.cpp's own chat, which applies the file's own template."""
    import xllamacpp  # not on every platform: the other tests of this file run without

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)] if lora else []
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 512, 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    reply = server.handle_chat_completions({"messages": messages, "temperature": 0.0, "max_tokens": max_tokens})
    return reply["choices"][0]["message"]["content"]


@pytest.mark.slow
@pytest.mark.real_base
@pytest.mark.network
def test_llama_cpp_alone_gives_the_gguf_forms_of_the_embedded_base_the_text_of_the_chat(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "NUM_ANSWERS", 2)
    plan = replace(make_plan(signed=False), base=bundled_base.BASE, lora=Lora())
    workspace = make_workspace(tmp_path / "work", plan, num_rounds=1, mailbox=False)
    weak = read_from_anyone(workspace.global_adapter(1)).adapter
    adapter = replace(weak, factors={module: (a, 8 * b) for module, (a, b) in weak.factors.items()})
    write_adapter(tmp_path / "strong", adapter)
    for form in ("merged-gguf", "ollama"):
        assert (
            main(["export", str(tmp_path / "strong"), str(tmp_path / form), "--to", form, "-C", str(workspace.root)])
            == 0
        )
    assert json.loads((tmp_path / "merged-gguf/export.json").read_text())["comparison"]["effect_found"] > 0
    modelfile = (tmp_path / "ollama/Modelfile").read_text()
    assert modelfile.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
    assert f'SYSTEM """{plan.prompt.system}"""' in modelfile
    local = bases.find_for_plan(plan.base, None, None, print)
    question = "What are the symptoms of asthma?"
    texts = []
    for model, lora, adapters in (
        (tmp_path / "merged-gguf/model.gguf", None, []),
        (tmp_path / "ollama/base.gguf", tmp_path / "ollama/adapter.gguf", [adapter]),
    ):
        engine = LlamaCpp(model, local)
        engine.prepare(adapters)
        ids = prompt_ids(prompt_messages(plan.prompt, question), engine.tokenizer)
        texts.append(text_of(engine, ids, adapters[0] if adapters else None, Sampling(5)))
        engine.close()
        assert texts[-1] == text_by_llama_cpp_alone(model, lora, prompt_messages(plan.prompt, question), 5)
    assert all(texts)
