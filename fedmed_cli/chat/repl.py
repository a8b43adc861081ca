"""A chat session: lines come in, slash commands act, answers are shown until the user leaves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedmed_cli.chat.choose_adapter import NamedAdapter
from fedmed_cli.chat.conversation import LABEL, Conversation, check_length
from fedmed_cli.chat.guardrails.findings import Finding, Level
from fedmed_cli.errors import ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.records.chat import Chat
from fedmed_cli.workspace.durable import private_files, write_file

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
    "/set": ("NAME VALUE", "change temperature, max-new-tokens or seed"),
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
        self, view: View, conversation: Conversation, find: Callable[[str], NamedAdapter], fingerprint: str
    ) -> None:
        self.view = view
        self.conversation = conversation
        self.find = find
        self.fingerprint = fingerprint
        self.last_question: str | None = None
        self._shown: set[str] = set()

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
        name, _, argument = text.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name in COMMANDS:
            getattr(self, f"do_{name[1:]}")(argument.strip())
        elif text.startswith("/") and text[1:2].isalpha() and "/" not in name[1:]:
            near = [known for known in COMMANDS if known.startswith(name[:3])]
            hint = f"; did you mean {' or '.join(near)}?" if near else "; /help lists them"
            raise UsageError(f"there is no command {name[:30]}{hint}")
        elif text:
            self.last_question = text
            ask_and_show(self.view, self.conversation, text, self._shown)
        return True

    def do_help(self, _: str) -> None:
        self.view.commands((f"{command} {argument}".strip(), what) for command, (argument, what) in COMMANDS.items())
        self.view.say("Alt-Enter, or \\ at the end of a line, begins a new line.")

    def do_base(self, _: str) -> None:
        self._use("base")

    def do_global(self, _: str) -> None:
        self._use("global")

    def do_site(self, argument: str) -> None:
        self._use(_one_argument("/site", argument))

    def do_adapter(self, argument: str) -> None:
        self._use(_one_argument("/adapter", argument))

    def _use(self, name: str) -> None:
        named = self.find(name)
        seconds = self.conversation.use(named)
        self.view.say(f"{named.name} answers from now on ({seconds:.1f} s)")

    def do_compare(self, argument: str) -> None:
        question = argument or self.last_question
        if question is None:
            raise UsageError("/compare: there is no question yet; /compare QUESTION asks one")
        current = self.conversation.current
        compared = [self.find("base"), self.find("global") if current.adapter is None else current]
        guarded = self.conversation.guard(question)
        show_findings(self.view, guarded.findings, self._shown)
        columns = self.conversation.compare(guarded, compared)
        if columns:
            self.last_question = guarded.question
            self.view.side_by_side(columns, LABEL)

    def do_system(self, argument: str) -> None:
        if argument == "reset":
            self.conversation.system = self.conversation.prompt.system
        elif argument:
            self.conversation.system = check_length(argument)
        self.view.say(f"system text: {self.conversation.system or '(none)'}")

    def do_clear(self, _: str) -> None:
        self.conversation.turns.clear()
        self.view.say("the conversation is forgotten")

    def do_save(self, argument: str) -> None:
        path = Path(_one_argument("/save", argument)).expanduser()
        if path.exists():
            raise ConflictError(f"{path} exists already")
        if not self.conversation.turns:
            raise UsageError("/save: there is nothing to save yet")
        with private_files():
            write_file(path, self.conversation.record(self.fingerprint).to_bytes())
        self.view.say(f"wrote {path} ({len(self.conversation.turns)} questions; it holds their text)")

    def do_load(self, argument: str) -> None:
        path = Path(_one_argument("/load", argument)).expanduser()
        record = Chat.read(path)
        if record.base_fingerprint != self.fingerprint:
            self.view.say("(that conversation was held with another base model)")
        self.conversation.turns[:] = record.turns
        self.conversation.system = record.system
        if record.turns:
            self.last_question = record.turns[-1].question
        self.view.say(f"read {path}: {len(record.turns)} questions")

    def do_set(self, argument: str) -> None:
        if not argument:
            self._say_settings()
            return
        name, _, value = argument.replace("=", " ").partition(" ")
        self.view.say(f"{name} is {self.conversation.settings.set(name, value.strip())}")

    def _say_settings(self) -> None:
        settings = self.conversation.settings
        seed = "random" if settings.seed is None else settings.seed
        self.view.say(f"temperature {settings.temperature}, max-new-tokens {settings.max_new_tokens}, seed {seed}")

    def do_stats(self, _: str) -> None:
        self.view.say(f"{self.conversation.current.name}; {self.conversation.engine.description}")
        self._say_settings()
        answers = self.conversation.stats
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


def ask_and_show(view: View, conversation: Conversation, question: str, shown: set[str]) -> None:
    """Ask, and show notices, the answer as it grows, and what is possible or what the answer itself calls for.

    `shown` are the notices of before; it gets the new ones too.
    """
    guarded = conversation.guard(question)
    possible = [finding for finding in guarded.findings if finding.level is Level.POSSIBLE]
    show_findings(view, (finding for finding in guarded.findings if finding not in possible), shown)
    if guarded.is_held_back:
        return
    with view.answer(LABEL) as on_text:
        reply = conversation.ask(guarded, on_text)
    show_findings(view, [*possible, *reply.answer_findings], shown)
    if reply.answer and not reply.answer.finished:
        view.say("(cut at --max-new-tokens)")
    if reply.num_forgotten:
        view.say(f"(the first {reply.num_forgotten} questions no longer fit the context)")


def show_findings(view: View, findings: Iterable[Finding], shown: set[str]) -> None:
    """Show each notice once in a session; urgent ones and refusals once for each text that calls for them."""
    now: set[str] = set()
    for finding in findings:
        if finding.notice not in now and (finding.level is not Level.NOTICE or finding.notice not in shown):
            view.notice(finding.level.value, finding.notice)
        now.add(finding.notice)
    shown |= now


def _one_argument(name: str, rest: str) -> str:
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
