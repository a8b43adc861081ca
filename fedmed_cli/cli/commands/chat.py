"""`fedmed chat`: ask the model."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse


def chat(
    question: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help=r"base, global, best, a site, or an adapter's folder \[global, else base]."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, max=4096, help="Maximum tokens of an answer.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=2.0, help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=2**32 - 2, help=r"Seed for sampling, to repeat answers \[random]."),
    ] = None,
    engine: o.EngineOption = "auto",
    gguf: o.GgufOption = None,
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="Keep typed lines in .fedmed/chat_history for the next chat.")
    ] = False,
    guardrails: o.GuardrailsOption = "standard",
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Ask the base model with the newest global adapter, once or in a conversation.

    For research evaluation, not for clinical use: answers can be wrong. In a conversation /help lists the commands.

    Example: fedmed chat "What are the signs of a stroke?"
    """
    import sys
    from contextlib import closing

    from fedmed_cli.chat import choose_adapter
    from fedmed_cli.chat.conversation import DISCLAIMER, Conversation, Settings, check_length, to_json
    from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS, STRICTNESS
    from fedmed_cli.errors import UsageError
    from fedmed_cli.models.engines.choose import ENGINES, choose_engine

    parse.choice("--engine", engine, ENGINES)
    strictness = parse.choice("--guardrails", guardrails, STRICTNESS)
    screen, place = common.open()
    plan = place.read_plan()
    named = None if adapter == "best" else choose_adapter.choose_adapter(place, plan, adapter, screen.say)
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.buffer.read(8 * MAX_CHARACTERS).decode("utf-8", "replace")
    if question is None and screen.as_json:
        raise UsageError("--json answers one question", hint='give it as an argument: fedmed chat --json "…"')
    if question is not None:
        check_length(question)
    base = model.base_model(screen)

    from fedmed_cli.chat import repl
    from fedmed_cli.cli import terminal

    adapters = [named.adapter] if named is not None and named.adapter is not None else []
    with closing(choose_engine(base, plan.base, engine, gguf, adapters)) as answers:

        def find(name: str) -> choose_adapter.NamedAdapter:
            with screen.progress("measuring") as update:

                def measured(done: int, total: int) -> None:
                    update(done, total, "")

                return choose_adapter.choose_adapter(
                    place, plan, name, screen.say, lambda: base.load(plan.base), measured
                )

        named = named or find("best")
        settings = Settings(temperature, min(max_new_tokens, answers.context // 2), seed)
        conversation = Conversation(answers, plan.prompt, settings, guardrails=strictness)
        conversation.use(named)
        screen.detail(answers.description)
        screen.say(f"{plan.base.name} with {named.name}. {DISCLAIMER}")
        if question is None:
            history = place.private / "chat_history" if keep_history else None
            session = repl.Session(screen, conversation, find, plan.base.fingerprint)
            session.run(terminal.reader(repl.COMMANDS, plan.sites.names, history))
        elif screen.as_json:
            screen.result(to_json(conversation.ask(conversation.guard(question)), named))
        else:
            repl.ask_and_show(screen, conversation, question, set())
