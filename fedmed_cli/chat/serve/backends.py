"""Who answers: an engine in this process, or a server behind this one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from fedmed_cli.chat.choose_adapter import NamedAdapter
from fedmed_cli.chat.conversation import Conversation, Settings
from fedmed_cli.chat.generation import answer
from fedmed_cli.chat.serve.replies import Model
from fedmed_cli.chat.serve.requests import Ask, BadRequest
from fedmed_cli.errors import InputError, MachineError
from fedmed_cli.models.engines.engine import Engine
from fedmed_cli.models.prompts import prompt_messages
from fedmed_cli.records.plan import Prompt


@dataclass(frozen=True)
class Last:
    """What is known once an answer is there. `finish` is OpenAI's finish_reason."""

    num_prompt: int
    num_tokens: int
    finish: str
    num_forgotten: int = 0


class Backend(Protocol):
    """Who answers."""

    async def models(self) -> Sequence[Model]:
        """What can be asked for, the default first."""

    def answer(self, ask: Ask) -> AsyncGenerator[str | Last, None]:
        """The pieces of an answer, then a Last; closing it stops the work.

        BadRequest where the question does not fit, FedmedError where there is no answer to be had.
        """


class _Gone(Exception):
    """Nobody waits for the rest of an answer."""


class EngineBackend:
    """An engine, and the adapters that it answers with, by the name they are asked for."""

    def __init__(self, engine: Engine, prompt: Prompt, adapters: dict[str, NamedAdapter], parallel: int) -> None:
        self._threads = ThreadPoolExecutor(parallel, "fedmed-serve")
        self._tokenizing = ThreadPoolExecutor(1, "fedmed-tokenize")  # a long conversation takes seconds
        self._engine, self._prompt, self._adapters = engine, prompt, adapters
        self._models = [Model(id, named.name, named.digest) for id, named in adapters.items()]

    async def models(self) -> Sequence[Model]:
        return self._models

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Last, None]:
        named = self._adapters[ask.model]
        settings = Settings(ask.temperature, ask.max_tokens, ask.seed)
        conversation = Conversation(self._engine, self._prompt, settings, list(ask.turns), named)
        if ask.system is not None:
            conversation.system = ask.system
        loop = asyncio.get_running_loop()
        find_ids = functools.partial(conversation.prompt_ids, ask.guarded.question)
        try:
            ids, num_forgotten = await loop.run_in_executor(self._tokenizing, find_ids)
        except InputError as error:
            has_room = ask.max_tokens < self._engine.context
            raise BadRequest(
                error.message, "messages" if has_room else "max_tokens", "context_length_exceeded"
            ) from None
        pieces: asyncio.Queue[str | Last | BaseException] = asyncio.Queue()
        gone = threading.Event()

        def put(piece: str | Last | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def on_text(text: str) -> None:
            if gone.is_set():
                raise _Gone
            put(text)

        def work() -> None:
            try:
                result = answer(self._engine, ids, named.adapter, settings.sampling, on_text, ask.stop)
                put(Last(len(ids), result.num_tokens, result.finish, num_forgotten))
            except BaseException as error:
                put(error)

        task = loop.run_in_executor(self._threads, work)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Last):
                    return
        finally:
            gone.set()
            await asyncio.shield(task)


# What comes of JSON that is not of the form that was expected, or is nested too deep.
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


def _whole_characters(text: Any) -> str:
    """What another server calls a text, without half characters, which no reply of ours can hold."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


class UpstreamBackend:
    """Another OpenAI-compatible server; the plan's prompt and the guardrails stand before it."""

    def __init__(self, url: str, prompt: Prompt, key: str | None, seconds: float, client: Any = None) -> None:
        import httpx2

        self._prompt = prompt
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = client or httpx2.AsyncClient(
            base_url=url, headers=headers, timeout=httpx2.Timeout(seconds, connect=5)
        )
        self._errors = httpx2.HTTPError

    async def models(self) -> Sequence[Model]:
        try:
            reply = await self._client.get("v1/models")
            reply.raise_for_status()
            names = [_whole_characters(entry["id"])[:200] for entry in reply.json()["data"]]
        except (self._errors, *_UNREADABLE):
            raise MachineError("the upstream server does not list its models") from None
        return [Model(name, f"{name} (upstream)", None) for name in names]

    async def answer(self, ask: Ask) -> AsyncGenerator[str | Last, None]:
        system = self._prompt.system if ask.system is None else ask.system
        messages = [{"role": "system", "content": system}] if system else []
        for turn in ask.turns:
            messages += [self._user(turn.question), {"role": "assistant", "content": turn.answer}]
        body = {
            "model": ask.model,
            "messages": [*messages, self._user(ask.guarded.question)],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ask.seed is not None:
            body["seed"] = ask.seed
        if ask.stop:
            body["stop"] = list(ask.stop)
        finish, usage = "", (0, 0)
        try:
            async with self._client.stream("POST", "v1/chat/completions", json=body) as reply:
                if reply.status_code >= 400:
                    raise MachineError(f"the upstream server answered with status {reply.status_code}")
                async for line in reply.aiter_lines():
                    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                        continue
                    chunk = json.loads(line[5:])
                    if used := chunk.get("usage"):
                        usage = int(used.get("prompt_tokens", 0)), int(used.get("completion_tokens", 0))
                    for choice in chunk.get("choices", [])[:1]:
                        if text := choice.get("delta", {}).get("content"):
                            yield _whole_characters(text)
                        finish = _whole_characters(choice.get("finish_reason") or finish)
        except (self._errors, *_UNREADABLE) as error:
            raise MachineError(f"the upstream server gave no answer ({type(error).__name__})") from None
        if not finish:
            raise MachineError("the upstream server broke off its answer")
        yield Last(*usage, finish)

    def _user(self, question: str) -> dict[str, str]:
        return prompt_messages(self._prompt, question)[-1]
