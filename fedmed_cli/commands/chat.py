"""`fedmed chat`: ask the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli import options as o


def chat(
    question: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="base, global, or an adapter's folder [global, else base].")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Ask the base model with the newest global adapter, once or in a conversation.

    For research evaluation, not for clinical use: answers can be wrong.

    Example: fedmed chat "What are the signs of a stroke?"
    """
    import sys

    from fedmed_cli.bases import find_for_plan
    from fedmed_cli.chatting import choose_adapter
    from fedmed_cli.screen import Screen
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    name, chosen = choose_adapter(place, plan, adapter, screen.say)
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    local = find_for_plan(plan.base, base, base_wheel, screen.say)

    from fedmed_cli import chatting, models

    lm = models.load(local, device, screen.say, screen.detail)
    lm.use(chosen)
    screen.say(f"{plan.base.name} with {name}. {chatting.DISCLAIMER}")
    conversation = chatting.Conversation(lm, plan.prompt, max_new_tokens, temperature)
    if question is not None:
        answer = conversation.ask(question, on_text=(lambda text: None) if as_json else screen.write)
        chatting.show_one(screen, answer, name, chosen)
    else:
        chatting.converse(screen, conversation)
