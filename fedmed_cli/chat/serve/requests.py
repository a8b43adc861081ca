"""What a request asks for, read strictly: whatever would change the answer and is not supported is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedmed_cli.chat.conversation import Guarded, guard
from fedmed_cli.chat.guardrails.findings import Strictness
from fedmed_cli.errors import InputError
from fedmed_cli.models.engines.engine import MAX_SEED
from fedmed_cli.records.chat import Turn
from fedmed_cli.records.codec import parse_json

MAX_BODY = 1_000_000
MAX_MESSAGES = 200
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 100
MAX_TOKENS, DEFAULT_TOKENS = 4096, 256
# Fields that OpenAI's clients send, with the values that ask for nothing we lack. They and null are taken.
_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "store": (False,),
}
_IGNORED = ("user", "metadata")  # who asks; it changes nothing and is not kept
_KNOWN = {"model", "messages", "stream", "stream_options", "stop", "seed", "max_tokens", "max_completion_tokens"} | {
    "temperature"
}


class BadRequest(Exception):
    """A request that is refused: an HTTP status, what is wrong, OpenAI's code for it, and the field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


@dataclass(frozen=True)
class Ask:
    """A request: the question as the guardrails see it, and the turns before it that the model may see.

    `num_left_out` counts earlier questions whose answer the guardrails held back: the model does not see them.
    """

    model: str
    guarded: Guarded
    turns: tuple[Turn, ...]
    num_left_out: int
    system: str | None
    max_tokens: int
    temperature: float
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_ask(data: bytes, guardrails: Strictness) -> Ask:
    """Read a body. BadRequest names the field and what was expected; it never quotes a message."""
    try:
        body = parse_json(data, "body", MAX_BODY)
    except InputError as error:
        raise BadRequest(error.message) from None
    if not isinstance(body, dict):
        raise BadRequest("body: expected an object")
    for name, value in body.items():
        if name in _KNOWN or name in _IGNORED or value is None:
            continue
        if name not in _NO_EFFECT:
            raise BadRequest(f"{name[:80]!a} is not supported", name[:80], "unsupported_parameter")
        if not any(type(value) is type(one) and value == one for one in _same_numbers(_NO_EFFECT[name])):
            raise BadRequest(f"{name} is not supported with this value", name, "unsupported_value")
    model = body.get("model")
    if not isinstance(model, str):
        raise BadRequest("model: expected a name; GET /v1/models lists them", "model")
    system, turns, guarded, num_left_out = _read_messages(body.get("messages"), guardrails)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise BadRequest("stream_options: expected include_usage and nothing else", "stream_options")
    return Ask(
        model=model,
        guarded=guarded,
        turns=turns,
        num_left_out=num_left_out,
        system=system,
        max_tokens=int(_number(body, limit, 1, MAX_TOKENS, DEFAULT_TOKENS, whole=True)),
        temperature=float(_number(body, "temperature", 0, 2, 0.0)),
        seed=None if body.get("seed") is None else int(_number(body, "seed", 0, MAX_SEED, 0, whole=True)),
        stop=_read_stop(body.get("stop")),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def _same_numbers(values: tuple[Any, ...]) -> list[Any]:
    """The values, whole numbers as fractions too."""
    return [*values, *(float(value) for value in values if type(value) is int)]


def _number(body: dict[str, Any], name: str, least: float, most: float, default: float, whole: bool = False) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise BadRequest(f"{name}: expected {kind} from {least} to {most}", name)
    return float(value)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"{name}: expected true or false", name)
    return bool(value)


def _read_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops)
    ):
        raise BadRequest(f"stop: expected at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters", "stop")
    return tuple(stops)


def _read_messages(value: Any, guardrails: Strictness) -> tuple[str | None, tuple[Turn, ...], Guarded, int]:
    """System text, earlier turns, the question, and how many earlier questions were left out."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise BadRequest(f"messages: expected a list of 1 to {MAX_MESSAGES} messages", "messages")
    roles, texts = zip(*(_read_message(number, message) for number, message in enumerate(value)), strict=True)
    system = texts[0] if roles[0] in ("system", "developer") else None
    if system is not None:
        roles, texts = roles[1:], texts[1:]
    if list(roles) != ["user" if number % 2 == 0 else "assistant" for number in range(len(roles))] or not roles:
        raise BadRequest("messages: expected user and assistant in turns, at most one system message first", "messages")
    if roles[-1] != "user":
        raise BadRequest("messages: the last message must be the user's", "messages")
    turns, num_left_out = [], 0
    for question, answer in zip(texts[:-1:2], texts[1::2], strict=True):
        guarded = _guard(question, guardrails)
        if guarded.is_held_back:
            num_left_out += 1
        else:
            turns.append(Turn(guarded.question, answer))
    return system, tuple(turns), _guard(texts[-1], guardrails), num_left_out


def _guard(question: str, guardrails: Strictness) -> Guarded:
    try:
        return guard(question, guardrails)
    except InputError as error:
        raise BadRequest(f"messages: {error.message}", "messages") from None


def _read_message(number: int, message: Any) -> tuple[str, str]:
    name = f"messages[{number}]"
    if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
        raise BadRequest(f"{name}: expected a role of system, developer, user or assistant", "messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            raise BadRequest(f"{name}: expected parts of type text", "messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{name}: expected content as text", "messages")
    return message["role"], content
