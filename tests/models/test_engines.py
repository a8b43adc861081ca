"""The two engines: what they compute, beside transformers and PEFT, and which of them is taken."""

import itertools
import json
import threading

import gguf
import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from helpers.tiny_gguf import write_gguf

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import CombineError, InputError, MachineError, UsageError
from fedmed_cli.models import bases, bundled_base, language_model
from fedmed_cli.models.base_model import BaseModel
from fedmed_cli.models.engines import llama_cpp
from fedmed_cli.models.engines.choose import choose_engine
from fedmed_cli.models.engines.engine import Piece, Sampling, stream
from fedmed_cli.models.engines.gguf_base import check_gguf
from fedmed_cli.models.engines.llama_cpp import LlamaCpp
from fedmed_cli.models.engines.transformers_engine import TransformersEngine
from fedmed_cli.models.prompts import prompt_ids, render
from fedmed_cli.models.tokenizer import PlainTokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("float32")
PROMPTS = [[5, 9, 13, 7, 9, 13], list(range(40, 60))]


@pytest.fixture
def plan(round_workspace):
    return round_workspace.read_plan()


@pytest.fixture
def adapters(round_workspace, plan):
    """The global adapter and those of the sites, of round 1."""
    return [
        gate.read_folder(folder, plan).adapter
        for folder in (round_workspace.global_adapter(1), *(round_workspace.contribution(s) for s in "ABC"))
    ]


@pytest.fixture
def local(plan, tiny_base):
    return bases.find_for_plan(plan.base, str(tiny_base), None, print)


@pytest.fixture
def lm(local):
    return language_model.load(local, "cpu")


@pytest.fixture
def llama(tiny_gguf, local):
    engine = LlamaCpp(tiny_gguf, local)
    yield engine
    engine.close()


def log_probabilities(lm, ids, num_prompt):
    """PEFT's, the reference."""
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].float()
    shares = torch.log_softmax(logits, -1)
    return [float(shares[place - 1, ids[place]]) for place in range(num_prompt, len(ids))]


def text_of(engine, ids, adapter, sampling):
    pieces = list(engine.generate(ids, adapter, sampling))
    assert sum(piece.num_tokens for piece in pieces) <= sampling.max_new_tokens
    return "".join(piece.text for piece in pieces)


# --- what they compute -------------------------------------------------------------------------------


def test_llama_cpp_gives_every_adapter_the_probabilities_of_peft(llama, lm, adapters):
    llama.prepare(adapters)
    ids = list(range(30, 60))
    rows = []
    for adapter in [None, *adapters]:
        lm.use(adapter)
        expected, found = log_probabilities(lm, ids, 20), llama.log_probabilities(ids, 20, adapter)
        assert found == pytest.approx(expected, abs=0.02)
        rows.append(found)
    for one, other in itertools.combinations(rows, 2):
        assert np.abs(np.subtract(one, other)).max() > 0.05  # the bound above tells them apart


@pytest.mark.parametrize("kind", ["llama.cpp", "transformers"])
@pytest.mark.slow
def test_an_engine_behaves_as_the_chat_expects(kind, llama, lm, adapters, request):
    engine = llama if kind == "llama.cpp" else TransformersEngine(lm)
    engine.prepare(adapters[:1])
    with_adapter = [text_of(engine, ids, adapters[0], Sampling(24)) for ids in PROMPTS]
    plain = [text_of(engine, ids, None, Sampling(24)) for ids in PROMPTS]
    assert with_adapter != plain
    engine.prepare(adapters)  # more of them: nothing of before changes
    assert [text_of(engine, ids, adapters[0], Sampling(24)) for ids in PROMPTS] == with_adapter
    assert text_of(engine, PROMPTS[0], None, Sampling(24)) == plain[0]
    seeded = [text_of(engine, PROMPTS[1], None, Sampling(24, 1.5, seed)) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    unseeded = {text_of(engine, PROMPTS[1], None, Sampling(24, 1.5)) for _ in range(3)}
    assert len(unseeded) > 1
    pieces = engine.generate(PROMPTS[1], None, Sampling(300, 1.5, 3))
    next(pieces)
    pieces.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fedmed-engine"]
    assert text_of(engine, PROMPTS[0], None, Sampling(24)) == plain[0]


@pytest.mark.slow
def test_transformers_gives_the_greedy_tokens_of_its_own_model(lm, adapters):
    engine = TransformersEngine(lm)
    for adapter in (None, adapters[0]):
        found = text_of(engine, PROMPTS[1], adapter, Sampling(30))
        lm.use(adapter)
        tensor = torch.tensor([PROMPTS[1]])
        with torch.inference_mode():
            output = lm.model.generate(
                input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=30, do_sample=False
            )
        assert found == lm.tokenizer.decode(output[0, len(PROMPTS[1]) :], skip_special_tokens=True)


def test_a_prompt_longer_than_the_context_is_an_error(llama):
    llama.prepare([])
    with pytest.raises(InputError, match="does not fit"):
        list(llama.generate([7] * 600, None, Sampling(5)))


def test_an_adapter_of_other_shapes_is_refused(llama, lm, adapters):
    good = adapters[0]
    factors = {module: (a[:, :-1], b) for module, (a, b) in good.factors.items()}
    wrong = Adapter(good.r, good.alpha, good.targets, good.base_name, factors)
    for engine in (llama, TransformersEngine(lm)):
        with pytest.raises(CombineError, match="does not fit"):
            engine.prepare([wrong])


def test_a_stream_gives_pieces_passes_errors_on_and_stops_when_nobody_reads():
    def work(give):
        assert give(Piece("a", 1))
        raise MachineError("no memory")

    pieces = stream(work)
    assert next(pieces) == Piece("a", 1)
    with pytest.raises(MachineError, match="no memory"):
        next(pieces)
    ended = threading.Event()

    def endless(give):
        while give(Piece("a", 1)):
            pass
        ended.set()

    pieces = stream(endless)
    next(pieces)
    pieces.close()
    assert ended.is_set()


# --- tokenizers --------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "system", "content": "Be  kind.\n"},
    {"role": "user", "content": "What is flu? 12345 naïve 你好 <|end|> <|im_end|>"},
    {"role": "assistant", "content": " A virus. "},
    {"role": "user", "content": "And then?"},
]


def same_tokenizer(folder):
    from transformers import AutoTokenizer

    plain, whole = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(plain, PlainTokenizer)
    assert prompt_ids(MESSAGES, plain) == prompt_ids(MESSAGES, whole)
    assert prompt_ids(MESSAGES[1:], plain) == prompt_ids(MESSAGES[1:], whole)
    assert (plain.eos_token_id, plain.get_vocab()) == (whole.eos_token_id, whole.get_vocab())


def test_the_plain_tokenizer_gives_the_tokens_of_transformers(tiny_base):
    same_tokenizer(tiny_base)


@pytest.mark.real_base
@pytest.mark.network
@pytest.mark.slow
def test_the_plain_tokenizer_gives_the_tokens_of_transformers_for_the_embedded_base():
    same_tokenizer(bases.find(bundled_base.NAME, None, None, print).folder)


def test_a_folder_with_more_to_it_gets_the_tokenizer_of_transformers(tmp_path):
    folder = make_tiny_llama(tmp_path / "tiny")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    assert type(load_tokenizer(folder)).__module__.startswith("transformers")


TEMPLATE_OF_A_DAY = """{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if tools is none %}{{ bos_token }}{{ date_string }} {{ strftime_now("%Y-%m-%d") }}{% endif %}
{% for message in messages %}{% generation %}{{ message | tojson(indent=1) }}{% endgeneration %}{% endfor %}"""


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(tmp_path):
    from transformers import AutoTokenizer

    folder = make_tiny_llama(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE_OF_A_DAY)
    plain, whole = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(plain, PlainTokenizer)
    that_day = TEMPLATE_OF_A_DAY.replace('strftime_now("%Y-%m-%d")', '"2024-07-26"')
    expected = whole.apply_chat_template(
        MESSAGES, chat_template=that_day, tokenize=False, date_string="26 Jul 2024", add_generation_prompt=True
    )
    assert expected.startswith("26 Jul 2024 2024-07-26{")
    assert render(MESSAGES, plain) == render(MESSAGES, whole) == expected


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 2), (4, 2), (8, 4), (64, 8)])
def test_threads_of_llama_cpp(cores, threads, monkeypatch):
    monkeypatch.setattr(llama_cpp.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert llama_cpp.count_threads() == threads


def test_the_thread_that_loads_a_model_is_gone_when_it_answers(plan, tiny_base, monkeypatch):
    threads = []
    load = BaseModel.load
    monkeypatch.setattr(BaseModel, "load", lambda *args: threads.append(threading.current_thread()) or load(*args))
    choose_engine(BaseModel(str(tiny_base), device="cpu"), plan.base, "transformers", None)
    assert [thread.is_alive() for thread in threads] == [False]


# --- which of them is taken --------------------------------------------------------------------------


@pytest.fixture
def choose(plan, tiny_base):
    """A function that chooses an engine for the tiny base; it gives the engine's name and what was said."""

    def run(name, gguf=None, device="cpu", base=plan.base):
        said = []
        engine = choose_engine(BaseModel(str(tiny_base), None, device, say=said.append), base, name, gguf)
        engine.close()
        return engine.name, said

    return run


@pytest.mark.slow
def test_llama_cpp_is_taken_where_there_is_a_gguf(choose, tiny_gguf):
    assert choose("auto")[0] == choose("transformers")[0] == "transformers"
    for name in ("auto", "llama.cpp"):
        engine, said = choose(name, tiny_gguf)
        assert engine == "llama.cpp"
        assert "5 norm weights of tiny" in said[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("llama.cpp",), "no GGUF file of tiny"),
        (("transformers", "x.gguf"), "--gguf goes with"),
        (("llama.cpp", None, "cuda"), "runs on the CPU"),
        (("auto", "x.gguf", "mps"), "runs on the CPU"),
    ],
)
def test_choices_that_contradict_each_other(choose, argv, message):
    with pytest.raises(UsageError, match=message):
        choose(*argv)


@pytest.mark.parametrize("why", ["the package", "this CPU lacks avx2"])
def test_without_llama_cpp_transformers_answers_and_says_so(choose, plan, tiny_base, tiny_gguf, why, monkeypatch):
    def missing():
        raise ImportError

    if "CPU" in why:
        monkeypatch.setattr(llama_cpp, "_missing_instructions", lambda: "avx2")
    else:
        monkeypatch.setattr(llama_cpp, "_package", missing)
    # As if the tiny base were the embedded one, for which no file has to be named.
    monkeypatch.setattr(bundled_base, "BASE", plan.base)
    engine, said = choose("auto")
    assert engine == "transformers"
    assert why in said[0]
    assert "transformers answers" in said[0]
    for argv in (("llama.cpp",), ("auto", tiny_gguf)):  # what was asked for by name is never replaced
        with pytest.raises(MachineError, match=why):
            choose(*argv)


def test_another_architecture_is_not_taken(local):
    local.config["model_type"] = "gpt2"
    assert "not gpt2" in llama_cpp.find_fault(local)
    local.config.update(model_type="mistral", sliding_window=4096)
    assert "sliding window" in llama_cpp.find_fault(local)


def test_a_gguf_of_another_model_is_refused(local, tiny_base, tmp_path):
    def change_norm(name, values):
        return values * 1.5 if name == "model.norm.weight" else values

    def change_shape(name, values):
        return values[:, :32] if "down_proj" in name else values

    for change, message in ((change_norm, "model.norm.weight is not"), (change_shape, r"is \(32, 64\), found")):
        with pytest.raises(CombineError, match=message):
            check_gguf(write_gguf(tmp_path / "other.gguf", tiny_base, change), local)
    words = make_tiny_llama(tmp_path / "words")
    text = (words / "tokenizer.json").read_text().replace('"Ġthe"', '"Ġtho"')
    (words / "tokenizer.json").write_text(text)
    with pytest.raises(CombineError, match="vocabulary"):
        check_gguf(write_gguf(tmp_path / "words.gguf", words), local)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    for name, message in (("broken.gguf", "is not a readable GGUF"), ("none.gguf", "no such file")):
        with pytest.raises(InputError, match=message):
            check_gguf(tmp_path / name, local)


@pytest.mark.parametrize("value", [7, True, "text"])
def test_a_vocabulary_that_is_no_list_is_refused(local, tiny_base, tmp_path, monkeypatch, value):
    add = {int: "add_uint32", bool: "add_bool", str: "add_string"}[type(value)]
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_token_list", lambda writer, tokens: getattr(writer, add)("tokenizer.ggml.tokens", value)
    )
    with pytest.raises(CombineError, match="its vocabulary is not"):
        check_gguf(write_gguf(tmp_path / "x.gguf", tiny_base), local)


def test_a_gguf_that_llama_cpp_cannot_load(local, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    engine = LlamaCpp(tmp_path / "broken.gguf", local)
    with pytest.raises(MachineError, match="cannot load"):
        engine.prepare([])
    engine.close()
