"""The objects that a reply is made of, as OpenAI's clients read them, and fedmed's own in each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedmed_cli.chat.conversation import DISCLAIMER, Guarded
from fedmed_cli.chat.guardrails.findings import Finding, Level


@dataclass(frozen=True)
class Model:
    """Something that can be asked for by its name; `digest` is its adapter's, None for the base or where not known."""

    id: str
    name: str
    digest: str | None

    def to_dict(self, created: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "model",
            "created": created,
            "owned_by": "fedmed",
            "fedmed": {"name": self.name, "adapter": self.digest},
        }


@dataclass(frozen=True)
class Reply:
    """What every object of one reply shares."""

    id: str
    created: int
    model: Model

    def whole(self, text: str, finish: str, usage: dict[str, int], fedmed: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion", [choice]) | {"usage": usage, "fedmed": fedmed}

    def chunk(self, delta: dict[str, str], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice]) | more

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._object("chat.completion.chunk", []) | {"usage": usage}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": f"fedmed-{(self.model.digest or 'base')[:12]}",
            "choices": choices,
        }


def usage_of(num_prompt: int, num_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt + num_tokens,
    }


def fedmed_object(model: Model, guarded: Guarded, num_left_out: int) -> dict[str, Any]:
    """What is known before the answer: whose it will be, what the guardrails found, and the disclaimer."""
    return {
        "adapter": model.digest,
        "adapter_name": model.name,
        "findings": [finding.to_dict() for finding in guarded.findings],
        "held_back": guarded.is_held_back,
        "num_left_out": num_left_out,
        "notice": DISCLAIMER,
    }


def notice_before(guarded: Guarded) -> str:
    """What stands before an answer, or for it: each urgent notice and refusal once. Empty where there is none."""
    return _notices(guarded, Level.URGENT, Level.DECLINE)


def notice_after(guarded: Guarded) -> str:
    """What stands after an answer: what a question may be about, in calm words. Empty where there is none."""
    return "" if guarded.is_held_back else _notices(guarded, Level.POSSIBLE)


def _notices(guarded: Guarded, *levels: Level) -> str:
    return "\n\n".join(dict.fromkeys(finding.notice for finding in guarded.findings if finding.level in levels))


def headers_of(model: Model, guarded: Guarded) -> dict[str, str]:
    return {
        "x-fedmed-adapter": model.digest or "none",
        "x-fedmed-findings": ",".join(sorted({_short(finding) for finding in guarded.findings})) or "none",
        "x-fedmed-notice": DISCLAIMER,
        "cache-control": "no-store",
    }


def _short(finding: Finding) -> str:
    return f"{finding.kind.value}:{finding.level.value}"


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n\n"


DONE = b"data: [DONE]\n\n"
