"""The server: routes, limits, who may ask, and what is logged."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedmed_cli.chat.conversation import guard
from fedmed_cli.chat.guardrails.answer import check_answer
from fedmed_cli.chat.guardrails.findings import Strictness
from fedmed_cli.chat.serve.backends import Backend, Last
from fedmed_cli.chat.serve.replies import (
    DONE,
    Model,
    Reply,
    error_object,
    event,
    fedmed_object,
    headers_of,
    notice_after,
    notice_before,
    usage_of,
)
from fedmed_cli.chat.serve.requests import MAX_BODY, Ask, BadRequest, parse_ask
from fedmed_cli.errors import FedmedError
from fedmed_cli.events import Say

SECONDS_BETWEEN_LOOKS = 0.25  # at whether the client is still there
SECONDS_TO_READ = 30  # a body
HELD_BACK = "content_filter"  # OpenAI's finish_reason for it
BUG = "this is a bug in fedmed"
# The page's own files, and nothing from elsewhere.
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """`parallel` answers at once, `queue` requests waiting, `seconds` for one of them in all."""

    parallel: int = 4
    queue: int = 32
    seconds: float = 300.0


@dataclass
class Server:
    """One server. `hosts` are the names it may be called by (empty: any), `origins` the pages that may ask.

    `num_read` requests are being looked at, `num_waiting` are answered or wait for it.
    """

    backend: Backend
    limits: Limits = Limits()
    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    guardrails: Strictness = "standard"
    log: Say = lambda line: None
    num_read: int = field(default=0, init=False)
    num_waiting: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._turn = asyncio.Semaphore(self.limits.parallel)  # first come, first served
        self._started = int(time.time())
        guard("hello", self.guardrails)  # the guardrails' rules are read now, not with the first question

    def app(self) -> Starlette:
        """The ASGI application."""
        middleware = []
        if self.hosts:  # else another site's page could reach a loopback server by a name of its own
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(self.hosts), www_redirect=False))
        if self.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(self.origins),
                    allow_methods=["GET", "POST"],
                    allow_headers=["authorization", "content-type"],
                    expose_headers=["x-fedmed-adapter", "x-fedmed-findings", "x-fedmed-notice"],
                )
            )
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            *(Route(path, self._page) for path in PAGE),
        ]
        errors: dict[Any, Any] = {HTTPException: _http_error, BadRequest: _bad_request, FedmedError: _failed}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=errors | {Exception: _bug})

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": self.num_waiting})

    async def _page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        data = resources.files(__package__).joinpath(name).read_bytes()
        return Response(data, media_type=kind, headers=PAGE_HEADERS)

    async def _list(self, request: Request) -> Response:
        self._check_key(request)
        models = [model.to_dict(self._started) for model in await self.backend.models()]
        return JSONResponse({"object": "list", "data": models})

    async def _complete(self, request: Request) -> Response:
        self._check_key(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequest("expected content-type: application/json", status=415)
        ask, model = await self._understand(await _read_body(request))
        reply = Reply(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model)
        headers = headers_of(model, ask.guarded)
        pieces = self._answer(ask)
        try:
            if not ask.stream:
                return JSONResponse(await _until_gone(request, _whole(pieces, reply, ask)), headers=headers)
            stream = _events(pieces, reply, ask)
            first = await _until_gone(request, anext(stream))  # an error until then gets a status of its own
        except BaseException:
            await pieces.aclose()
            raise
        return StreamingResponse(_chain(first, stream), media_type="text/event-stream", headers=headers)

    async def _understand(self, data: bytes) -> tuple[Ask, Model]:
        """What a body asks for, and of which model. That takes seconds where it is large, so it counts as waiting."""
        if self.num_read + self.num_waiting >= self.limits.queue + self.limits.parallel:
            raise BadRequest("too many requests are waiting; try again later", None, "rate_limit_exceeded", 429)
        self.num_read += 1
        try:
            ask = await asyncio.to_thread(parse_ask, data, self.guardrails)
            models = {model.id: model for model in await self.backend.models()}
        finally:
            self.num_read -= 1
        if ask.model not in models:
            raise BadRequest("there is no such model; GET /v1/models lists them", "model", "model_not_found", 404)
        return ask, models[ask.model]

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.key is not None and not secrets.compare_digest(given, self.key.encode()):
            raise BadRequest("a wrong or missing API key", None, "invalid_api_key", 401)

    def _answer(self, ask: Ask) -> Pieces:
        """The answer, which is begun at once, in turn with other requests and within the time; logged in numbers."""
        made: asyncio.Queue[str | Last | Exception] = asyncio.Queue()
        self.num_waiting += 1
        task = asyncio.create_task(self._make(ask, made))
        task.add_done_callback(lambda _: self._leave())
        return Pieces(task, made, functools.partial(self._log, ask))

    def _leave(self) -> None:
        self.num_waiting -= 1

    async def _make(self, ask: Ask, made: asyncio.Queue[str | Last | Exception]) -> None:
        """Have the backend answer, in one task from beginning to end, whoever reads what is made."""
        if ask.guarded.is_held_back:
            made.put_nowait(Last(0, 0, HELD_BACK))
            return
        try:
            async with asyncio.timeout(self.limits.seconds), self._turn, aclosing(self.backend.answer(ask)) as pieces:
                async for piece in pieces:
                    made.put_nowait(piece)
        except TimeoutError:
            made.put_nowait(BadRequest("the answer took too long", None, "timeout", 504))
        except Exception as error:
            made.put_nowait(error)

    def _log(self, ask: Ask, last: Last, seconds: float) -> None:
        self.log(
            f"{ask.model}: {last.num_prompt} + {last.num_tokens} tokens in {seconds:.2f} s, {last.finish}, "
            f"{len(ask.guarded.findings)} findings"
        )


class Pieces:
    """An answer's pieces and a Last, as they are made; closing it stops the work, and logs it."""

    def __init__(
        self,
        task: asyncio.Task[None],
        made: asyncio.Queue[str | Last | Exception],
        log: Callable[[Last, float], None],
    ) -> None:
        self._task, self._made, self._log = task, made, log
        self._started = time.monotonic()
        self._last: Last | None = None
        self._is_closed = False

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> str | Last:
        if self._last is not None:
            raise StopAsyncIteration
        piece = await self._made.get()
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, Last):
            self._last = piece
        return piece

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._task.cancel()
        self._log(self._last or Last(0, 0, "broken-off"), time.monotonic() - self._started)
        with suppress(asyncio.CancelledError):
            await self._task


async def _read_body(request: Request) -> bytes:
    size = request.headers.get("content-length", "0")
    if not size.isdecimal() or int(size) > MAX_BODY:
        raise BadRequest(f"expected a body of at most {MAX_BODY:,} bytes", status=413)
    data = bytearray()
    try:
        async with asyncio.timeout(SECONDS_TO_READ):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY:
                    raise BadRequest(f"expected a body of at most {MAX_BODY:,} bytes", status=413)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {SECONDS_TO_READ} s", status=408) from None
    except ClientDisconnect:
        raise BadRequest("the body broke off") from None
    return bytes(data)


def _after(ask: Ask, text: str, last: Last, fedmed: dict[str, Any]) -> dict[str, Any]:
    """What the answer itself calls for, besides what was known before it."""
    found = check_answer(text, ask.guarded.findings)
    return fedmed | {"answer_findings": [item.to_dict() for item in found], "num_forgotten": last.num_forgotten}


async def _whole(pieces: Pieces, reply: Reply, ask: Ask) -> dict[str, Any]:
    text, last = "", Last(0, 0, "stop")
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Last):
                last = piece
            else:
                text += piece
    fedmed = _after(ask, text, last, fedmed_object(reply.model, ask.guarded, ask.num_left_out))
    shown = "\n\n".join(part for part in (notice_before(ask.guarded), text, notice_after(ask.guarded)) if part)
    return reply.whole(shown, last.finish, usage_of(last.num_prompt, last.num_tokens), fedmed)


async def _events(pieces: Pieces, reply: Reply, ask: Ask) -> AsyncGenerator[bytes, None]:
    """The events of a stream. An urgent notice comes at once, else the first event once the answer has begun.

    Errors after the first event are events themselves.
    """
    fedmed = fedmed_object(reply.model, ask.guarded, ask.num_left_out)
    before, after = notice_before(ask.guarded), notice_after(ask.guarded)
    begin = event(reply.chunk({"role": "assistant", "content": ""}, fedmed=fedmed))
    text, has_begun = "", bool(before)
    async with aclosing(pieces):
        if before:
            lead = before if ask.guarded.is_held_back else f"{before}\n\n"
            yield begin
            yield event(reply.chunk({"content": lead}, fedmed={"is_notice": "urgent"}))
        try:
            async for piece in pieces:
                if not has_begun:
                    has_begun = True
                    yield begin
                if not isinstance(piece, Last):
                    text += piece
                    yield event(reply.chunk({"content": piece}))
                    continue
                if after:
                    yield event(reply.chunk({"content": f"\n\n{after}"}, fedmed={"is_notice": "possible"}))
                yield event(reply.chunk({}, piece.finish, fedmed=_after(ask, text, piece, fedmed)))
                if ask.include_usage:
                    yield event(reply.usage_chunk(usage_of(piece.num_prompt, piece.num_tokens)))
        except (BadRequest, FedmedError) as error:
            if not has_begun:
                raise
            yield event(error_object(error.message, "server_error"))
        except Exception:
            if has_begun:
                yield event(error_object(BUG, "server_error"))
                yield DONE
            raise
    yield DONE


async def _chain(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def _until_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is stopped where the client goes away."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await task
    except asyncio.CancelledError:
        raise BadRequest("the client went away", status=499) from None
    finally:
        watcher.cancel()
        task.cancel()


def _bad_request(request: Request, error: BadRequest) -> Response:
    kind = {401: "authentication_error", 429: "rate_limit_error", 504: "server_error"}
    headers = {"retry-after": "5"} if error.status == 429 else {}
    content = error_object(error.message, kind.get(error.status, "invalid_request_error"), error.param, error.code)
    return JSONResponse(content, error.status, headers)


def _http_error(request: Request, error: HTTPException) -> Response:
    content = error_object(str(error.detail), "invalid_request_error")
    return JSONResponse(content, error.status_code, dict(error.headers or {}))


def _failed(request: Request, error: FedmedError) -> Response:
    return JSONResponse(error_object(error.message, "server_error"), 502)


def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse(error_object(BUG, "server_error"), 500)
