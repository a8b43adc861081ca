"""A chat: decoding against transformers, whole sessions with a scripted model, one-shot, pipe and JSON."""

import io
import json
import os
import stat
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_model import ScriptedDecoder

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, adapter_files
from fedmed_cli.chat import conversation as chatting
from fedmed_cli.chat import decoding
from fedmed_cli.chat.choose_adapter import BASE, NamedAdapter
from fedmed_cli.chat.conversation import Conversation, Settings
from fedmed_cli.chat.prompt_lookup import MAX_DRAFT, PromptLookup
from fedmed_cli.chat.repl import COMMANDS, Session
from fedmed_cli.cli import terminal
from fedmed_cli.cli.app import main
from fedmed_cli.errors import CombineError, InputError, UsageError
from fedmed_cli.models import language_model
from fedmed_cli.models.bases import find_for_plan
from fedmed_cli.records.chat import Chat
from fedmed_cli.records.plan import Prompt
from fedmed_cli.text import clean, without_open_end

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def loaded(round_workspace, tiny_base):
    """The tiny base in memory, and the global adapter of round 1."""
    plan = round_workspace.read_plan()
    lm = language_model.load(find_for_plan(plan.base, str(tiny_base), None, lambda text: None), "cpu")
    adapter = gate.read_global(round_workspace.global_adapter(1), plan).adapter
    return lm, adapter, plan, round_workspace


def greedy(lm, ids, count):
    """Transformers' own greedy tokens, the reference."""
    tensor = torch.tensor([ids])
    with torch.inference_mode():
        output = lm.model.generate(
            input_ids=tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(ids) :].tolist()


def decode(decoder, ids, count):
    return list(decoding.generate(decoder, ids, max_new_tokens=count, temperature=0.0, stop=frozenset()))


# --- decoding ----------------------------------------------------------------------------------------


def test_merged_decoding_gives_the_text_of_the_unmerged_adapter(loaded):
    lm, adapter, _, _ = loaded
    decoder = decoding.MergedDecoder(lm, 256)
    prompts = [list(range(3 + i, 40 + 3 * i)) for i in range(5)]
    decoder.use(adapter)
    merged = [decode(decoder, ids, 30) for ids in prompts]
    decoder.use(None)
    plain = [decode(decoder, ids, 30) for ids in prompts]
    assert [greedy(lm, ids, 30) for ids in prompts] == plain  # no adapter on `lm` yet
    lm.use(adapter)
    assert [greedy(lm, ids, 30) for ids in prompts] == merged
    assert merged != plain
    decoder.use(adapter)
    assert [decode(decoder, ids, 30) for ids in prompts] == merged


def test_the_base_is_untouched_by_merging(loaded):
    lm, adapter, _, _ = loaded
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    decoding.MergedDecoder(lm, 64).use(adapter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_what_was_read_is_not_read_again(loaded, monkeypatch):
    lm, _, _, _ = loaded
    decoder = decoding.MergedDecoder(lm, 256)
    sizes = []
    forward = decoder._forward
    monkeypatch.setattr(decoder, "_forward", lambda ids, start: sizes.append((start, len(ids))) or forward(ids, start))
    first = list(range(10, 60))
    logits = decoder.read(first)
    more = [*first, 5, 6, 7]
    kept = decoder.read(more)
    assert sizes == [(0, 50), (50, 3)]
    fresh = decoding.MergedDecoder(lm, 256).read(more)
    assert torch.allclose(kept, fresh, atol=1e-4)
    assert torch.allclose(decoder.read(first), logits, atol=1e-4)  # the same again: only its last token is read
    assert sizes[-1] == (49, 1)
    changed = [*first[:20], 99, *first[21:]]
    assert torch.allclose(decoder.read(changed), decoding.MergedDecoder(lm, 256).read(changed), atol=1e-4)
    assert sizes[-1] == (20, 30)


def test_drafts_are_what_followed_the_last_time():
    lookup = PromptLookup([5, 6, 7, 8, 5, 6, 9, 6])
    assert lookup.next(3) == [9]  # after 6
    lookup.append(7)
    assert lookup.next(3) == [8, 5]  # after 6 7
    lookup.append(8)
    assert lookup.next(3) == [5, 6, 9]  # after 6 7 8
    assert lookup.next(2) == [5, 6]
    assert lookup.next(0) == []
    assert PromptLookup([1, 2, 3]).next(3) == []


def drafted(decoder, monkeypatch, temperature):
    """A function that gives 40 tokens after some ids, with drafts of at most so many tokens."""

    def tokens(ids, max_draft):
        monkeypatch.setattr(decoder, "max_draft", max_draft)
        decoder._ids = []
        generator = torch.Generator().manual_seed(1)
        return list(
            decoding.generate(
                decoder, ids, max_new_tokens=40, temperature=temperature, stop=frozenset(), generator=generator
            )
        )

    return tokens


PROMPTS = [[5, 9, 13, 7, 9, 13], list(range(40, 60))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_save_passes_and_change_no_token(loaded, temperature, monkeypatch):
    lm, adapter, *_ = loaded
    lm.model.float()  # so that no two logits are alike within rounding
    decoder = decoding.MergedDecoder(lm, 256, is_int8=False)
    decoder.use(adapter)
    tokens = drafted(decoder, monkeypatch, temperature)
    plain = [tokens(ids, 0) for ids in PROMPTS]
    forward, asked = decoder._forward, []
    monkeypatch.setattr(decoder, "_forward", lambda ids, start: asked.append(len(ids)) or forward(ids, start))
    assert [tokens(ids, MAX_DRAFT) for ids in PROMPTS] == plain
    right = iter([plain[0][at : at + 3] for at in range(0, 40, 4)])
    monkeypatch.setattr(PromptLookup, "next", lambda lookup, most: next(right)[:most])
    asked.clear()
    assert tokens(PROMPTS[0], MAX_DRAFT) == plain[0]
    assert asked == [len(PROMPTS[0]) + 3] + [4] * 9


def test_drafts_change_a_token_of_int8_only_where_two_are_alike_within_rounding(loaded, monkeypatch):
    """Its products are in bfloat16, where one token and four may be rounded differently."""
    lm, adapter, *_ = loaded
    decoder = decoding.MergedDecoder(lm, 256, is_int8=True)
    decoder.use(adapter)
    tokens = drafted(decoder, monkeypatch, 0.0)
    for ids in PROMPTS:
        plain, found = tokens(ids, 0), tokens(ids, MAX_DRAFT)
        same = next((i for i in range(40) if plain[i] != found[i]), 40)
        if same < 40:
            decoder._ids = []
            logits = decoder.read([*ids, *plain[:same]])[-1].float()
            assert logits[plain[same]] - logits[found[same]] < 0.02 * logits.abs().max()


def test_wrong_drafts_change_no_token(loaded, monkeypatch):
    lm, adapter, *_ = loaded
    lm.model.float()
    decoder = decoding.MergedDecoder(lm, 256)
    decoder.use(adapter)
    plain = decode(decoder, [5, 9, 13, 7], 30)
    monkeypatch.setattr(PromptLookup, "next", lambda lookup, most: [3, 1, 4][:most])
    decoder._ids = []
    assert decode(decoder, [5, 9, 13, 7], 30) == plain


def test_transformers_decoder_gives_the_same(loaded):
    lm, adapter, _, _ = loaded
    ids = list(range(10, 50))
    decoder = decoding.TransformersDecoder(lm)
    decoder.use(adapter)
    found = decode(decoder, ids, 20)
    assert found == greedy(lm, ids, 20)
    assert decode(decoder, [*ids, *found, 3, 4], 10) == greedy(lm, [*ids, *found, 3, 4], 10)
    assert decode(decoder, ids, 20) == found


def test_int8_is_near(loaded):
    lm, adapter, _, _ = loaded
    whole, small = decoding.MergedDecoder(lm, 64, is_int8=False), decoding.MergedDecoder(lm, 64, is_int8=True)
    whole.use(adapter)
    small.use(adapter)
    a = torch.log_softmax(whole.read([5, 6, 7]), -1)
    b = torch.log_softmax(small.read([5, 6, 7]), -1)
    assert 0 < (a - b).abs().max() < 0.15


def test_an_adapter_of_other_shapes_is_refused(loaded):
    lm, adapter, _, _ = loaded
    decoder = decoding.MergedDecoder(lm, 64)
    factors = {module: (a[:, :-1], b) for module, (a, b) in adapter.factors.items()}
    wrong = Adapter(adapter.r, adapter.alpha, adapter.targets, adapter.base_name, factors)
    with pytest.raises(CombineError, match="does not fit"):
        decoder.use(wrong)


def test_taking_adapters_off_gives_the_base_back(loaded):
    lm, adapter, _, _ = loaded
    ids = list(range(10, 30))
    plain = greedy(lm, ids, 10)
    lm.use(adapter)
    lm.take_off()
    assert greedy(lm, ids, 10) == plain
    lm.use(adapter)
    assert lm.read_factors().keys() == adapter.factors.keys()


# --- escapes -----------------------------------------------------------------------------------------


def test_nothing_of_an_escape_reaches_the_terminal_however_it_is_cut():
    text = "a\x1b[31mred\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c\x9bd\u202ee\x07f"
    assert clean(text) == "aredbcdef"
    for cut in range(len(text) + 1):
        shown = clean(without_open_end(text[:cut]))
        assert clean(text).startswith(shown)


# --- a scripted model --------------------------------------------------------------------------------


class Transcript:
    """A screen that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(f"say {message}")

    def notice(self, level, message):
        self.lines.append(f"{level} {message.split('.')[0]}")

    def answer(self, label):
        transcript = self

        class Answer:
            def __enter__(self):
                self.text = ""
                return self.add

            def add(self, text):
                self.text += text

            def __exit__(self, *error):
                transcript.lines.append(f"answer {self.text}")

        return Answer()

    def side_by_side(self, columns, label):
        self.lines.append(f"compare {list(columns)}")

    def commands(self, rows):
        self.lines.append(f"commands {len(list(rows))}")


@pytest.fixture
def scripted(tiny_base):
    """A function that runs a session over lines and gives its transcript, and the session."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def run(answers, lines, find=None, context=512):
        view = Transcript()
        decoder = ScriptedDecoder(tokenizer, answers)
        conversation = Conversation(decoder, tokenizer, Prompt("Be kind.", "{question}"), context, Settings(0.0, 100))
        session = Session(view, conversation, find or (lambda name: BASE), "f" * 64)
        script = iter(lines)

        def read_line():
            line = next(script, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        session.run(read_line)
        return view.lines[1:], session

    return run


def test_what_is_only_possible_is_said_after_the_answer_and_holds_nothing_back(scripted, monkeypatch):
    from fedmed_cli.chat.guardrails.findings import Finding, Kind, Level

    def check(text, strictness):
        return tuple(
            Finding("like", kind, level, 0, 1, notice, "")
            for kind, level, notice in (
                (Kind.CRISIS, Level.POSSIBLE, "Perhaps."),
                (Kind.DOSING, Level.NOTICE, "No doses."),
            )
        )

    monkeypatch.setattr(chatting, "check_question", check)
    lines, _ = scripted(["An answer."], ["a question"])
    assert lines[:3] == ["notice No doses", "answer An answer.", "possible Perhaps"]


def test_a_conversation_guards_as_strictly_as_it_is_told(monkeypatch):
    monkeypatch.setattr(chatting, "check_question", lambda text, strictness: (strictness,))
    monkeypatch.setattr(chatting, "holds_answer_back", lambda findings: False)
    prompt = Prompt("", "{question}")
    assert Conversation(None, None, prompt, 512).guard("a question").findings == ("standard",)
    assert Conversation(None, None, prompt, 512, guardrails="strict").guard("a question").findings == ("strict",)


def test_a_whole_session(scripted, tmp_path):
    file = tmp_path / "chat.json"
    other = NamedAdapter("adapter X", SimpleNamespace(digest="d" * 64))
    lines, session = scripted(
        ["It is a *virus*.", "Rest helps.", "base says", "adapter says", "After the load."],
        [
            "What is flu?",
            "",
            "   ",
            "/stats",
            "And what helps?",
            "/set temperature 0.2",
            "/set temperature 9",
            "/set colour red",
            "/system Answer briefly.",
            "/system reset",
            "/site B",
            "/compare",
            f"/save {file}",
            f"/save {file}",
            "/clear",
            f"/load {file}",
            f"/load {tmp_path}/none.json",
            "And then?",
            "/halp",
            "/help",
            "/quit",
            "never read",
        ],
        find=lambda name: BASE if name == "base" else other,
    )
    assert lines[0] == "answer It is a *virus*."
    assert lines[1] == "say base model, no adapter; scripted"
    assert lines[4].startswith(f"say session: 1 answer, {session.conversation.stats[0].num_tokens} tokens in ")
    assert lines[5] == "answer Rest helps."
    assert lines[6] == "say temperature is 0.2"
    assert lines[7] == "say temperature: expected 0.0 to 2.0, found '9'"
    assert lines[8] == "say no setting 'colour', expected one of temperature, max-new-tokens"
    assert lines[9] == "say system text: Answer briefly."
    assert lines[10] == "say system text: Be kind."
    assert lines[11].startswith("say adapter X answers from now on")
    assert lines[12] == "compare [('base model, no adapter', 'base says'), ('adapter X', 'adapter says')]"
    assert lines[13] == f"say wrote {file} (2 questions; it holds their text)"
    assert lines[14] == f"say {file} exists already"
    assert lines[15] == "say the conversation is forgotten"
    assert lines[16] == f"say read {file}: 2 questions"
    assert lines[17] == f"say {tmp_path}/none.json: no such file"
    assert lines[18] == "answer After the load."
    assert "there is no command /halp" in lines[19]
    assert lines[20] == f"commands {len(COMMANDS)}"
    assert all(hasattr(session, f"do_{command[1:]}") for command in COMMANDS if command != "/quit")
    assert len(lines) == 22
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    record = Chat.read(file)
    assert [turn.question for turn in record.turns] == ["What is flu?", "And what helps?"]
    assert record.adapter == "d" * 64
    assert [turn.question for turn in session.conversation.turns][-1] == "And then?"


def test_guardrails_in_a_session(scripted):
    lines, session = scripted(
        ["Sit down.", "Take 200 mg.", "Two tablets."],
        ["my chest hurts", "I want to kill myself", "How much ibuprofen can I take?", "how much aspirin may I take"],
    )
    assert lines[0] == "urgent This can be an emergency"
    assert lines[1] == "answer Sit down."
    assert lines[2] == "urgent Please talk to a person now"
    assert lines[3].startswith("notice No doses from here")
    assert lines[4] == "answer Take 200 mg."
    assert lines[5] == "answer Two tablets."  # the notice about doses is said once
    assert len(session.conversation.turns) == 3  # nothing of the crisis is fed to the model


def test_a_stopped_answer_leaves_the_session_whole(scripted):
    lines, session = scripted(["One.", KeyboardInterrupt(), "Three."], ["a?", "b?", KeyboardInterrupt(), "c?"])
    assert lines == ["answer One.", "answer ", "say (stopped)", "answer Three."]
    assert [turn.answer for turn in session.conversation.turns] == ["One.", "Three."]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x" * 50_000, "say the question has 50,000 characters, at most 20,000 are taken"),
        (
            "\x00\x01\x02\ufffd\ufffd\ufffd\ufffd",
            "say the question is not text: it holds bytes that are not characters",
        ),
        ("/nonsense", "say there is no command /nonsense; /help lists them"),
        ("/save", "say /save: expected /save FILE"),
        ("/save 'half", "say /save: expected /save FILE"),
        ("/compare", "say /compare: there is no question yet; /compare QUESTION asks one"),
    ],
)
def test_wrong_input_gets_a_sentence_and_the_session_goes_on(scripted, line, said):
    lines, _ = scripted(["Fine."], [line, "still there?"])
    assert lines == [said, "answer Fine."]


def test_old_turns_are_forgotten_and_that_is_said(scripted):
    lines, _ = scripted(["word " * 60] * 3, ["first?", "second?", "third?"], context=300)
    assert any("no longer fit" in line for line in lines)


def test_every_error_of_find_is_a_sentence(scripted):
    def find(name):
        raise InputError("there is no adapter", hint="train one")

    lines, _ = scripted(["Fine."], ["/site Z", "hello"], find=find)
    assert lines == ["say there is no adapter (train one)", "answer Fine."]


def test_settings_keep_their_types():
    settings = Settings()
    assert settings.set("max-new-tokens", "12") == 12
    assert settings.max_new_tokens == 12
    with pytest.raises(UsageError):
        settings.set("max-new-tokens", "1.5")


# --- the command -------------------------------------------------------------------------------------


def chat(workspace, base, *argv):
    return main(["chat", "-C", str(workspace.root), "--base", str(base), "--max-new-tokens", "8", *argv])


def test_one_shot_json(round_workspace, tiny_base, capsys):
    assert chat(round_workspace, tiny_base, "--json", "How much ibuprofen can I take?") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["num_tokens"] <= 8
    assert value["findings"][0]["kind"] == "dosing"
    assert value["adapter"] == json.loads((round_workspace.global_adapter(1) / "aggregate.json").read_text())["adapter"]
    assert "not for clinical use" in value["notice"]
    assert "ibuprofen" not in json.dumps({**value, "answer": ""})


def test_what_is_held_back_says_so_in_json_and_text(round_workspace, tiny_base, capsys):
    assert chat(round_workspace, tiny_base, "--json", "I want to kill myself") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["answer"], value["held_back"], value["num_tokens"]) == (None, True, 0)
    assert chat(round_workspace, tiny_base, "-q", "I want to kill myself") == 0
    out, err = capsys.readouterr()
    assert out.startswith("URGENT: Please talk to a person now.")
    assert err == ""


def test_a_pipe_gets_plain_text(round_workspace, tiny_base, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is flu?\n")))
    assert chat(round_workspace, tiny_base) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert out.endswith("\n")
    assert "research evaluation, not for clinical use" in err.lower()


@pytest.mark.parametrize("name", ["base", "global", "best", "A", "B"])
def test_choosing_an_adapter(round_workspace, tiny_base, capsys, name):
    assert chat(round_workspace, tiny_base, "--json", "--adapter", name, "What is flu?") == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    if name == "base":
        assert value["adapter"] is None
    elif name == "best":
        losses = dict(part.split(" ") for part in err.split("coordinator's examples: ")[1].split("\n")[0].split(", "))
        best = min(losses, key=lambda key: float(losses[key]))
        assert f"best is {best}" in err
        assert (f"site {best} " in value["adapter_name"]) or best == "global"
    elif name != "global":
        assert f"site {name} of round 1" in value["adapter_name"]


def test_wrong_adapters_and_questions(round_workspace, tiny_base, fails):
    where = ("chat", "-C", round_workspace.root, "--base", tiny_base)
    assert "no such folder" in fails(3, *where, "--adapter", "nowhere", "hello")
    assert "is empty" in fails(3, *where, "  ")
    assert "50,000 characters" in fails(3, *where, "x" * 50_000)


def test_an_adapter_of_another_base(round_workspace, tiny_base, fails):
    config = round_workspace.root / "x"
    adapter = gate.read_global(round_workspace.global_adapter(1), round_workspace.read_plan()).adapter
    other = Adapter(adapter.r, adapter.alpha, adapter.targets, "another/base", adapter.factors)
    config.mkdir()
    for name, data in adapter_files(other, "x").items():
        (config / name).write_bytes(data)
    where = ("chat", "-C", round_workspace.root, "--base", tiny_base)
    assert "base_model_name_or_path" in fails(4, *where, "--adapter", config, "hello")


def test_the_history_is_private_and_refuses_links(tmp_path):
    path = tmp_path / "h" / "history"
    terminal._private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    terminal._private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be kept"):
        terminal._private(link)
    assert not os.path.exists(tmp_path / "elsewhere")


def test_question_lengths():
    assert chatting.check_length("  a\x1b[31mb ") == "ab"
    with pytest.raises(InputError, match="empty"):
        chatting.check_length("\n")
