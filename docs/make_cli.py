"""Write docs/cli.md from the commands themselves: python docs/make_cli.py"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

from fedmed_cli import errors
from fedmed_cli.cli.app import make_app

PATH = Path(__file__).with_name("cli.md")
HEAD = """# Command reference

Made from the commands by `python docs/make_cli.py`; a test checks that it is up to date. `fedmed COMMAND --help` says
the same. A default in square brackets is fedmed's or the plan's.

## Exit codes

| code | when |
| --- | --- |
| 0 | done |
| 1 | a bug in fedmed: report the lines it shows |
"""


def render() -> str:
    """The whole page."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind is not errors.FedmedError]
    codes = sorted((kind.exit_code, inspect.getdoc(kind) or "") for kind in kinds)
    parts = [HEAD, *(f"| {code} | {about} |\n" for code, about in codes)]
    app: Any = typer.main.get_command(make_app())
    for name in app.list_commands(None):
        command = app.commands[name]
        if getattr(command, "invoke_without_command", True):
            parts.append(_command(name, command))
        parts += [_command(f"{name} {sub}", child) for sub, child in getattr(command, "commands", {}).items()]
    return "".join(parts)


def _command(words: str, command: Any) -> str:
    about = "\n\n".join(_lines(paragraph) for paragraph in inspect.cleandoc(command.help).split("\n\n"))
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    table = "".join(row for row in rows if row)
    return f"\n## fedmed {words}\n\n{about}\n\n| option | meaning |\n| --- | --- |\n{table}"


def _lines(paragraph: str) -> str:
    text = " ".join(paragraph.split())
    before, example, after = text.partition("Example: ")
    return f"{before}Example: `{after}`" if example else text


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    text = (parameter.help or "").replace("\\[", "[").replace("|", "\\|")
    default = parameter.default
    shown = default is not None and default is not False and default != () and "[" not in text
    return f"| {names} | {text}{f' [{default}]' if shown and not callable(default) else ''} |\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
