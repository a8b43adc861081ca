"""A conversation with the model: which adapter, which messages, what is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmed_cli import adapters
from fedmed_cli.adapters import Adapter
from fedmed_cli.digests import short
from fedmed_cli.errors import InputError
from fedmed_cli.examples import prompt_ids, prompt_messages
from fedmed_cli.records import Plan, Prompt
from fedmed_cli.workspace import Workspace

if TYPE_CHECKING:
    from fedmed_cli.generation import Answer

DISCLAIMER = "Research evaluation, not for clinical use: answers can be wrong. In an emergency call your local number."
MAX_QUESTION = 20_000

Say = Callable[[str], None]


def choose_adapter(workspace: Workspace, plan: Plan, name: str | None, say: Say) -> tuple[str, Adapter | None]:
    """The adapter for "base", "global", a folder, or by default the newest global one; with how to call it."""
    newest = workspace.newest_round()
    if name == "base":
        return "no adapter (base)", None
    if name in (None, "global"):
        if not newest:
            if name == "global":
                raise InputError(
                    "there is no global adapter yet",
                    hint="run 'fedmed round' or 'fedmed aggregate', or use --adapter base",
                )
            say("there is no global adapter yet: the base model answers")
            return "no adapter (base)", None
        adapter = adapters.read_global(workspace.global_adapter(newest), plan).adapter
        return f"the global adapter of round {newest} ({short(adapter.digest)})", adapter
    assert name is not None
    adapter = adapters.read_folder(Path(name), plan).adapter
    return f"adapter {name} ({short(adapter.digest)})", adapter


class Conversation:
    """Messages so far; each question is answered with what came before it, as far as it fits the context."""

    def __init__(self, lm: Any, prompt: Prompt, max_new_tokens: int, temperature: float) -> None:
        self.lm = lm
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.turns: list[tuple[dict[str, str], dict[str, str]]] = []
        self.num_forgotten = 0

    def ask(self, question: str, on_text: Callable[[str], None]) -> Answer:
        """Answer a question and remember both. InputError where it is empty or too long.

        The oldest turns are left out where the conversation outgrows the model's context; `num_forgotten`
        counts them.
        """
        from fedmed_cli.generation import answer, clean

        question = clean(question).strip()
        if not question:
            raise InputError("the question is empty")
        if len(question) > MAX_QUESTION:
            raise InputError(f"the question has {len(question):,} characters, at most {MAX_QUESTION:,} are taken")
        *system, user = prompt_messages(self.prompt, question)
        room = int(getattr(self.lm.model.config, "max_position_embeddings", 4096)) - self.max_new_tokens
        self.num_forgotten = 0
        while True:
            past = [message for turn in self.turns[self.num_forgotten :] for message in turn]
            messages = [*system, *past, user]
            if len(prompt_ids(messages, self.lm.tokenizer)) <= room:
                break
            if self.num_forgotten == len(self.turns):
                raise InputError(f"the question does not fit into the model's context ({room:,} tokens)")
            self.num_forgotten += 1
        result = answer(
            self.lm,
            messages,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            on_text=on_text,
        )
        self.turns.append((user, {"role": "assistant", "content": result.text}))
        return result


def show_one(screen: Any, answer: Answer, name: str, adapter: Adapter | None) -> None:
    """The end of a single answer: its JSON, or a line feed and a word where it was cut."""
    if screen.as_json:
        screen.result(
            {
                "answer": answer.text,
                "adapter": adapter.digest if adapter else None,
                "adapter_name": name,
                "num_tokens": answer.num_tokens,
                "seconds": round(answer.seconds, 3),
                "seconds_to_first_token": round(answer.seconds_to_first_token, 3),
                "finished": answer.finished,
                "notice": DISCLAIMER,
            }
        )
        return
    screen.write("\n")
    if not answer.finished:
        screen.say("(cut at --max-new-tokens)")


def converse(screen: Any, conversation: Conversation) -> None:
    """Questions from the terminal until Ctrl-D or /quit; Ctrl-C stops an answer."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # gives input() line editing and a history of this session

    screen.say("Ask a question. Ctrl-C stops an answer, Ctrl-D or /quit leaves.")
    while True:
        try:
            question = input("\n> ")
        except EOFError:
            screen.write("\n")
            return
        except KeyboardInterrupt:
            screen.write("\n")
            continue
        if question.strip() in ("/quit", "/exit"):
            return
        if not question.strip():
            continue
        try:
            answer = conversation.ask(question, screen.write)
        except KeyboardInterrupt:
            screen.write("\n")
            screen.say("(stopped)")
            continue
        except InputError as error:
            screen.say(error.message)
            continue
        screen.write("\n")
        if conversation.num_forgotten:
            screen.say(f"(the first {conversation.num_forgotten} questions no longer fit the context)")
        if not answer.finished:
            screen.say("(cut at --max-new-tokens)")
