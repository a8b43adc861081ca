"""A chat: whole sessions with a scripted model, one-shot, pipe and JSON."""

import io
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.factories import write_adapter
from helpers.fake_model import ScriptedEngine

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.chat import conversation as chatting
from fedmed_cli.chat.choose_adapter import BASE, NamedAdapter
from fedmed_cli.chat.conversation import Conversation, Settings
from fedmed_cli.chat.repl import COMMANDS, Session
from fedmed_cli.cli import terminal
from fedmed_cli.cli.app import main
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.records.chat import Chat
from fedmed_cli.records.plan import Prompt
from fedmed_cli.text import clean, without_open_end

pytestmark = pytest.mark.usefixtures("float32")


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

    def run(answers, lines, find=None, context=512):
        view = Transcript()
        engine = ScriptedEngine(tiny_base, answers, context)
        conversation = Conversation(engine, Prompt("Be kind.", "{question}"), Settings(0.0, 100))
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
    assert Conversation(None, prompt).guard("a question").findings == ("standard",)
    assert Conversation(None, prompt, guardrails="strict").guard("a question").findings == ("strict",)


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
    assert lines[8] == "say no setting 'colour', expected one of temperature, max-new-tokens, seed"
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


@pytest.mark.slow
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
    elif name == "global":
        record = json.loads((round_workspace.global_adapter(1) / "aggregate.json").read_text())
        assert value["adapter"] == record["adapter"]
    elif name == "best":
        losses = dict(part.split(" ") for part in err.split("coordinator's examples: ")[1].split("\n")[0].split(", "))
        best = min(losses, key=lambda key: float(losses[key]))
        assert f"best is {best}" in err
        assert (f"site {best} " in value["adapter_name"]) or best == "global"
    else:
        record = json.loads((round_workspace.round(1) / name / "contribution.json").read_text())
        assert value["adapter"] == record["adapter"]
        assert f"site {name} of round 1" in value["adapter_name"]


def test_wrong_adapters_and_questions(round_workspace, tiny_base, fails):
    where = ("chat", "-C", round_workspace.root, "--base", tiny_base)
    assert "no such folder" in fails(3, *where, "--adapter", "nowhere", "hello")
    assert "is empty" in fails(3, *where, "  ")
    assert "50,000 characters" in fails(3, *where, "x" * 50_000)


def test_an_adapter_of_another_base(round_workspace, tiny_base, fails):
    adapter = gate.read_global(round_workspace.global_adapter(1), round_workspace.read_plan()).adapter
    other = Adapter(adapter.r, adapter.alpha, adapter.targets, "another/base", adapter.factors)
    folder = write_adapter(round_workspace.root / "x", other)
    where = ("chat", "-C", round_workspace.root, "--base", tiny_base)
    assert "base_model_name_or_path" in fails(4, *where, "--adapter", folder, "hello")


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_saved_conversation_is_its_users_alone_from_its_first_byte(scripted, tmp_path):
    file, modes = tmp_path / "chat.json", []

    def note_mode(event, arguments):
        if event == "os.rename" and Path(arguments[1]) == file:
            modes.append(stat.S_IMODE(os.stat(arguments[0]).st_mode))

    sys.addaudithook(note_mode)  # it stays, and looks at this file alone
    scripted(["An answer."], ["What is flu?", f"/save {file}"])
    assert modes == [0o600]


def test_question_lengths():
    assert chatting.check_length("  a\x1b[31mb ") == "ab"
    with pytest.raises(InputError, match="empty"):
        chatting.check_length("\n")
