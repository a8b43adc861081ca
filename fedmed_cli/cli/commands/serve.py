"""`fedmed serve`: the chat as an HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    import socket


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own needs a key.")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8000,
    api_key: Annotated[
        Path | None,
        typer.Option(
            "--api-key",
            help="A file of mode 0600 with the key that clients must send [FEDMED_API_KEY].".replace("[", r"\["),
        ),
    ] = None,
    allow_origin: Annotated[
        str | None,
        typer.Option("--allow-origin", help="Comma-separated web origins that may call the server from a browser."),
    ] = None,
    upstream: Annotated[
        str | None, typer.Option("--upstream", help="Put the guardrails in front of this OpenAI-compatible server.")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Answers generated at the same time.")] = 4,
    queue: Annotated[int, typer.Option("--queue", min=0, max=10_000, help="Maximum number of waiting requests.")] = 32,
    timeout: Annotated[int, typer.Option("--timeout", min=1, max=86_400, help="Seconds allowed per request.")] = 300,
    engine: o.EngineOption = "auto",
    gguf: o.GgufOption = None,
    guardrails: o.GuardrailsOption = "standard",
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Serve the model over HTTP: an OpenAI-compatible API and a page at /, both behind the guardrails.

    For research evaluation, not for clinical use: answers can be wrong. Needs the extra serve (docs/serve.md).

    Example: fedmed serve --port 8000
    """
    import signal
    import sys
    from contextlib import ExitStack, closing

    from fedmed_cli.chat import choose_adapter
    from fedmed_cli.chat.conversation import DISCLAIMER
    from fedmed_cli.chat.guardrails.findings import STRICTNESS
    from fedmed_cli.cli import parse
    from fedmed_cli.errors import MachineError, UsageError
    from fedmed_cli.models.engines.choose import ENGINES, choose_engine

    try:
        import httpx2  # noqa: F401
        import uvicorn

        from fedmed_cli.chat.serve.app import Limits, Server
        from fedmed_cli.chat.serve.backends import Backend, EngineBackend, UpstreamBackend
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fedmed_cli"):
            raise
        raise MachineError(
            f"fedmed serve needs the package {error.name}",
            hint="install fedmed with its extra serve: pipx install '.[serve]' in the checkout",
        ) from None
    parse.choice("--engine", engine, ENGINES)
    strictness = parse.choice("--guardrails", guardrails, STRICTNESS)
    screen, place = common.open()
    if screen.as_json:
        raise UsageError("--json: a server prints no result")
    key = _read_key(api_key)
    is_local = host in ("127.0.0.1", "localhost")
    if not is_local and key is None:
        raise UsageError(
            f"--host {host}: others could ask, so a key is needed",
            hint="give a file with --api-key, or set FEDMED_API_KEY",
        )
    if upstream is not None and (engine != "auto" or gguf is not None):
        raise UsageError("--upstream answers by itself: omit --engine and --gguf")
    if upstream is not None and not upstream.startswith(("http://", "https://")):
        raise UsageError("--upstream: expected an address such as http://127.0.0.1:8080")
    plan = place.read_plan()
    listener = _listen(host, port)

    def leave(number: int, frame: object) -> None:
        sys.exit(0)

    with ExitStack() as stack:
        stack.enter_context(closing(listener))
        backend: Backend
        if upstream is not None:
            import os

            backend = UpstreamBackend(upstream.rstrip("/"), plan.prompt, os.environ.get("FEDMED_UPSTREAM_KEY"), timeout)
            screen.say(f"{upstream} answers behind fedmed's guardrails")
        else:
            adapters = choose_adapter.all_adapters(place, plan)
            known = [named.adapter for named in adapters.values() if named.adapter is not None]
            answers = choose_engine(model.base_model(screen), plan.base, engine, gguf, known, parallel)
            stack.enter_context(closing(answers))
            if answers.name == "transformers":
                parallel = 1  # it makes one answer at a time
            backend = EngineBackend(answers, plan.prompt, adapters, parallel)
            screen.say(f"{plan.base.name}, {answers.description}: {', '.join(adapters)}")
        server = Server(
            backend,
            Limits(parallel, queue, timeout),
            key,
            ("127.0.0.1", "localhost") if is_local else (),
            parse.names("--allow-origin", allow_origin) if allow_origin else (),
            strictness,
            screen.say,
        )
        config = uvicorn.Config(
            server.app(),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=timeout,
        )
        # uvicorn lets running answers end, then passes the signal on.
        signal.signal(signal.SIGTERM, leave)
        screen.say(f"listening on http://{host}:{listener.getsockname()[1]}. {DISCLAIMER}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """The socket to listen on. MachineError where the address cannot be had."""
    import socket

    from fedmed_cli.errors import MachineError

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host}:{port} ({(error.strerror or 'unknown reason').lower()})",
            hint="take another --port, or end the program that has this one",
        ) from None


def _read_key(path: Path | None) -> str | None:
    """The key of a file that nobody else can read, or of the environment. UsageError where it is not a key."""
    import os
    import stat

    from fedmed_cli.errors import InputError, UsageError

    if path is None:
        key = os.environ.get("FEDMED_API_KEY", "")
        where = "FEDMED_API_KEY"
    else:
        where = str(path)
        try:
            if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise UsageError(f"{path}: others can read this key", hint=f"run chmod 600 {path}")
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{path}: cannot be read") from None
    if (key or path) and (len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(f"{where}: expected a key of at least 16 printable characters without blanks")
    return key or None
