"""A chat session: lines come in, slash commands act, answers are shown until the user leaves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedmed_cli.chat.choose_adapter import Chosen
from fedmed_cli.chat.conversation import LABEL, Conversation, Reply, check_length
from fedmed_cli.chat.guardrails import check
from fedmed_cli.chat.guardrails.check import Finding, Level
from fedmed_cli.errors import ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.records.chat import Chat
from fedmed_cli.workspace.durable import write_file

# Each command with its argument and what it does, in the order that /help shows.
COMMANDS: dict[str, tuple[str, str]] = {
    "/help": ("", "show this list"),
    "/base": ("", "let the base model answer, without an adapter"),
    "/global": ("", "let the newest global adapter answer"),
    "/site": ("NAME", "let a site's adapter answer"),
    "/adapter": ("PATH|best", "let an adapter folder answer, or the best one"),
    "/compare": ("[QUESTION]", "answers of the base model and the adapter side by side; else to the last question"),
    "/system": ("[TEXT|reset]", "show, change or reset the system text"),
    "/clear": ("", "forget the conversation"),
    "/save": ("FILE", "write the conversation to a new file"),
    "/load": ("FILE", "go on with a saved conversation"),
    "/set": ("NAME VALUE", "change temperature or max-new-tokens"),
    "/stats": ("", "tokens, speed and settings"),
    "/quit": ("", "leave (or Ctrl-D)"),
}


class View(Protocol):
    """What a session needs of the screen."""

    def say(self, message: str) -> None: ...
    def notice(self, level: str, message: str) -> None: ...
    def answer(self, label: str) -> AbstractContextManager[Callable[[str], None]]: ...
    def side_by_side(self, columns: Iterable[tuple[str, str]], label: str) -> None: ...
    def commands(self, rows: Iterable[tuple[str, str]]) -> None: ...


class Session:
    """One user's chat. `find` resolves the name of an adapter; errors of a line are shown, and the session goes on."""

    def __init__(
        self, view: View, conversation: Conversation, find: Callable[[str | None], Chosen], fingerprint: str
    ) -> None:
        self.view = view
        self.conversation = conversation
        self.find = find
        self.fingerprint = fingerprint
        self.last_question: str | None = None
        self._told: set[str] = set()

    def run(self, read_line: Callable[[], str]) -> None:
        """Take lines until EOFError or /quit. KeyboardInterrupt stops an answer, or empties the line."""
        self.view.say("Ask a question, or /help. Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                line = read_line()
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            try:
                if not self.take(line):
                    return
            except KeyboardInterrupt:
                self.view.say("(stopped)")
            except FedmedError as error:
                self.view.say(f"{error.message}{f' ({error.hint})' if error.hint else ''}")
            except OSError as error:
                self.view.say(f"{error.filename or 'file'}: {(error.strerror or type(error).__name__).lower()}")

    def take(self, line: str) -> bool:
        """Act on one line; False where it ends the session."""
        text = line.strip()
        if not text:
            return True
        name, _, rest = text.partition(" ")
        if name == "/exit":
            name = "/quit"
        if name in COMMANDS and "\n" not in name:
            return self._command(name, rest.strip())
        if text.startswith("/") and text[1:2].isalpha() and "/" not in name[1:]:
            near = [known for known in COMMANDS if known.startswith(name[:3])]
            hint = f"; did you mean {' or '.join(near)}?" if near else "; /help lists them"
            raise UsageError(f"there is no command {name[:30]}{hint}")
        self.ask(text)
        return True

    def ask(self, question: str) -> None:
        """Show what the guardrails found and the answer."""
        self.last_question = question
        reply = ask_and_show(self.view, self.conversation, question, self._told)
        if reply.num_forgotten:
            self.view.say(f"(the first {reply.num_forgotten} questions no longer fit the context)")

    def _command(self, name: str, rest: str) -> bool:
        if name == "/quit":
            return False
        if name == "/help":
            self.view.commands(
                (f"{command} {argument}".strip(), what) for command, (argument, what) in COMMANDS.items()
            )
            self.view.say("Alt-Enter, or \\ at the end of a line, begins a new line.")
        elif name in ("/base", "/global"):
            self._use(self.find(name[1:]))
        elif name in ("/site", "/adapter"):
            self._use(self.find(_argument(name, rest)))
        elif name == "/compare":
            self._compare(rest)
        elif name == "/system":
            self._system(rest)
        elif name == "/clear":
            self.conversation.turns.clear()
            self.view.say("the conversation is forgotten")
        elif name == "/save":
            self._save(_argument(name, rest))
        elif name == "/load":
            self._load(_argument(name, rest))
        elif name == "/set":
            self._set(rest)
        elif name == "/stats":
            self._stats()
        return True

    def _use(self, chosen: Chosen) -> None:
        seconds = self.conversation.use(chosen)
        self.view.say(f"{chosen.name} answers from now on ({seconds:.1f} s)")

    def _compare(self, rest: str) -> None:
        question = rest or self.last_question
        if question is None:
            raise UsageError("/compare: there is no question yet; /compare QUESTION asks one")
        chosen = self.conversation.chosen
        if chosen.adapter is None:
            chosen = self.find("global")
        question = check_length(question)
        findings = check.check_question(question)
        show_findings(self.view, findings, self._told)
        columns = self.conversation.compare(question, [self.find("base"), chosen])
        if columns:
            self.last_question = question
            self.view.side_by_side(columns, LABEL)

    def _system(self, rest: str) -> None:
        if rest == "reset":
            self.conversation.system = None
        elif rest:
            self.conversation.system = check_length(rest)
        system = self.conversation.prompt.system if self.conversation.system is None else self.conversation.system
        self.view.say(f"system text: {system or '(none)'}")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if path.exists():
            raise ConflictError(f"{path} exists already")
        if not self.conversation.turns:
            raise UsageError("/save: there is nothing to save yet")
        write_file(path, self.conversation.record(self.fingerprint).to_bytes())
        os.chmod(path, 0o600)
        self.view.say(f"wrote {path} ({len(self.conversation.turns)} questions; it holds their text)")

    def _load(self, name: str) -> None:
        path = Path(name).expanduser()
        record = Chat.read(path)
        if record.base_fingerprint != self.fingerprint:
            self.view.say("(that conversation was held with another base model)")
        self.conversation.turns[:] = record.turns
        self.conversation.system = None if record.system == self.conversation.prompt.system else record.system
        if record.turns:
            self.last_question = record.turns[-1].question
        self.view.say(f"read {path}: {len(record.turns)} questions")

    def _set(self, rest: str) -> None:
        settings = self.conversation.settings
        if not rest:
            self.view.say(f"temperature {settings.temperature}, max-new-tokens {settings.max_new_tokens}")
            return
        name, _, value = rest.replace("=", " ").partition(" ")
        self.view.say(f"{name} is {settings.set(name, value.strip())}")

    def _stats(self) -> None:
        conversation = self.conversation
        settings = conversation.settings
        self.view.say(f"{conversation.chosen.name}; {conversation.decoder.kernels}")
        self.view.say(f"temperature {settings.temperature}, max-new-tokens {settings.max_new_tokens}")
        answers = conversation.stats
        if not answers:
            self.view.say("no answer yet")
            return
        last = answers[-1]
        tokens, seconds = sum(answer.num_tokens for answer in answers), sum(answer.seconds for answer in answers)
        self.view.say(
            f"last answer: {last.num_tokens} tokens, first after {last.seconds_to_first_token:.2f} s, "
            f"then {last.tokens_per_second:.1f} tokens/s"
        )
        count = f"{len(answers)} answer{'s' if len(answers) > 1 else ''}"
        self.view.say(f"session: {count}, {tokens} tokens in {seconds:.1f} s")


def ask_and_show(view: View, conversation: Conversation, question: str, told: set[str]) -> Reply:
    """Ask, and show notices, the answer as it grows, and what the answer itself calls for.

    `told` are the notices that were said before: those that are only a notice are said once.
    """
    question = check_length(question)
    findings = check.check_question(question)
    show_findings(view, findings, told)
    if check.holds_answer_back(findings):
        return Reply(question, findings, None, (), 0)
    with view.answer(LABEL) as on_text:
        reply = conversation.ask(question, on_text, findings)
    show_findings(view, reply.answer_findings, told)
    if reply.answer and not reply.answer.finished:
        view.say("(cut at --max-new-tokens)")
    return reply


def show_findings(view: View, findings: Iterable[Finding], told: set[str]) -> None:
    """Say each notice once; urgent ones and refusals every time."""
    shown: set[str] = set()
    for finding in findings:
        is_repeated = finding.notice in told and finding.level is Level.NOTICE
        if finding.notice not in shown and not is_repeated:
            view.notice(finding.level.value, finding.notice)
        shown.add(finding.notice)
    told |= shown


def _argument(name: str, rest: str) -> str:
    """A command's one argument, with or without quotes."""
    argument = COMMANDS[name][0]
    try:
        parts = shlex.split(rest) if rest[:1] in "'\"" else [rest]
    except ValueError:
        parts = []
    if len(parts) != 1 or not parts[0]:
        raise UsageError(f"{name}: expected {name} {argument}")
    if "\0" in parts[0]:
        raise InputError(f"{name}: expected {argument}, found a name with a zero byte")
    return parts[0]
