"""A chat as a person sees it: driven through tmux, a real terminal, with a scripted model."""

import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux, the terminal that tests drive"),
]

SCRIPT = Path(__file__).parents[1] / "helpers/fake_model.py"
ANSWER = (
    "It is a **virus** that passes by itself within a week or two for most people who have it.\n\n- Rest helps.\n"
    "- Drink enough water."
)
UNSET = ("NO_COLOR", "COLUMNS", "LINES")  # which test runners set for themselves
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Terminal:
    """A program in a tmux pane: keys go in, the screen comes out."""

    def __init__(self, command, width, raw, **environment):
        self.server, self.raw = f"fedmed-{uuid.uuid4().hex[:8]}", raw
        settings = [f"{name}={value}" for name, value in environment.items()]
        shell = (
            subprocess.list2cmdline(["env", *(f"--unset={name}" for name in UNSET), *settings, *command])
            + "; echo LEFT; sleep 600"
        )
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", "40", shell)
        self._tmux("pipe-pane", f"cat >> {raw}")

    def _tmux(self, *argv):
        return subprocess.run(
            ["tmux", "-u", "-L", self.server, *argv], check=True, capture_output=True, encoding="utf-8"
        ).stdout

    def type(self, text, enter=True):
        self._tmux("send-keys", "-l", text)
        if enter:
            self.press("Enter")

    def press(self, key):
        self._tmux("send-keys", key)

    def lines(self, *flags):
        return self._tmux("capture-pane", "-p", "-S", "-200", *flags).rstrip("\n").split("\n")

    def wait(self, text, times=1):
        """The screen's lines once `text` stands there that often."""
        return self._until(lambda screen: screen.count(text) >= times, repr(text))

    def wait_for_prompt(self):
        """Until an empty prompt stands last: the terminal swallows control keys that come before the prompt reads."""
        self._until(lambda screen: screen.split()[-1:] == ["›"], "an empty prompt")

    def _until(self, holds, what):
        ends = time.monotonic() + 90
        while time.monotonic() < ends:
            lines = self.lines()
            if holds("\n".join(lines)):
                return lines
            time.sleep(0.05)
        raise AssertionError(f"{what} never came:\n" + "\n".join(self.lines()))

    def close(self):
        subprocess.run(["tmux", "-L", self.server, "kill-server"], capture_output=True)


@pytest.fixture
def chat(tiny_base, tmp_path):
    """A function that starts a chat which gives these answers, in a terminal of a width."""
    opened = []

    def start(*answers, width=80, wait_after=0, **environment):
        command = [sys.executable, str(SCRIPT), str(tiny_base), str(wait_after), *answers]
        terminal = Terminal(command, width, tmp_path / f"raw{len(opened)}", **({"TERM": "tmux-256color"} | environment))
        opened.append(terminal)
        terminal.wait("Ask a question, or /help.")
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize("width", [60, 120])
def test_a_session_at_two_widths(chat, width):
    terminal = chat(ANSWER, "Yes.", width=width)
    terminal.type("What is flu?")
    lines = terminal.wait("Drink enough water.")
    assert [line.strip() for line in lines if "Rest helps" in line] == ["• Rest helps."]  # Markdown, drawn once
    assert "**" not in "\n".join(lines)
    assert any("research evaluation, not for clinical use" in line for line in lines)
    assert max(map(len, lines)) <= width
    answer = " ".join("\n".join(lines).split())
    assert "It is a virus that passes by itself within a week or two for most people who have it." in answer

    terminal.type("I have crushing chest pain and my left arm is numb")
    lines = terminal.wait("Yes.")
    terminal.wait_for_prompt()
    assert any("Urgent" in line and line.startswith("╭") for line in lines)
    panel = [line for line in lines if line.startswith(("│", "╭", "╰"))]
    assert len({len(line.rstrip()) for line in panel}) == 1  # its right edge is straight
    assert max(map(len, panel)) <= min(width, 100)

    terminal.type("/sta", enter=False)
    terminal.wait("/stats")  # in the menu: prompt_toolkit drops a Tab that comes while it still completes
    terminal.press("Tab")
    terminal.wait("› /stats")  # in the line
    terminal.press("Enter")  # takes the completion
    terminal.press("Enter")
    terminal.wait("tokens/s")
    terminal.type("/nothing")
    terminal.wait("there is no command /nothing")
    terminal.wait_for_prompt()
    terminal.press("C-d")
    terminal.wait("LEFT")


def test_lines_are_joined_and_an_answer_can_be_stopped(chat):
    terminal = chat("word " * 300, "After it.", wait_after=50)
    terminal.type("a question\\")
    terminal.type("of two lines")
    terminal.wait("word word")
    terminal.press("C-c")
    terminal.wait("(stopped)")
    terminal.type("another")
    terminal.wait("After it.")
    terminal.type("/quit")
    terminal.wait("LEFT")


def test_no_color_means_none(chat):
    terminal = chat(ANSWER, width=100, NO_COLOR="1")
    terminal.type("I have crushing chest pain and my left arm is numb")
    terminal.wait("Drink enough water.")
    assert not COLOUR.search("\n".join(terminal.lines("-e")))
    assert not COLOUR.search(terminal.raw.read_text(encoding="utf-8", errors="replace"))
    coloured = chat(ANSWER, width=100)
    coloured.type("I have crushing chest pain and my left arm is numb")
    coloured.wait("Drink enough water.")
    assert COLOUR.search("\n".join(coloured.lines("-e")))


def test_a_dumb_terminal_gets_plain_text(chat):
    terminal = chat(ANSWER, width=100, TERM="dumb")
    terminal.type("I have crushing chest pain and my left arm is numb")
    lines = terminal.wait("- Drink enough water.")
    assert any("**virus**" in line for line in lines)  # as the model wrote it
    assert any(line.startswith("URGENT: ") for line in lines)
    terminal.type("/quit")
    terminal.wait("LEFT")
    assert b"\x1b" not in terminal.raw.read_bytes()
