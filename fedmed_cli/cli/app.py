"""The Typer app, and main(): the one place where errors become exit codes."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from fedmed_cli import __version__
from fedmed_cli.cli.options import expand
from fedmed_cli.errors import FedmedError, InputError, Interrupted, MachineError

# Where each command is: module of fedmed_cli.cli.commands, and its function.
COMMANDS = {
    "split": ("split", "split"),
    "init": ("init", "init"),
    "train-local": ("train_local", "train_local"),
    "aggregate": ("aggregate", "aggregate"),
    "personalise": ("personalise", "personalise"),
    "round": ("round", "run_round"),
    "compare": ("compare", "compare"),
    "compare merge": ("compare_merge", "merge"),
    "compare score": ("compare_score", "score"),
    "chat": ("chat", "chat"),
    "serve": ("serve", "serve"),
    "export": ("export", "export"),
    "inspect-adapter": ("inspect_adapter", "inspect_adapter"),
    "verify": ("verify", "verify"),
    "pack": ("pack", "pack"),
    "report": ("report", "report"),
    "status": ("status", "status"),
    "doctor": ("doctor", "doctor"),
    "privacy": ("privacy", "privacy"),
    "audit": ("audit", "audit"),
    "keys": ("keys", "keys"),
    "keys new": ("keys", "new"),
    "keys show": ("keys", "show"),
    "keys trust": ("plan_keys", "trust"),
    "keys sign": ("plan_keys", "sign"),
    "keys accept": ("plan_keys", "accept"),
}
# Options of 0.1 that are commands now. They go with the next release.
RENAMED = {("compare", "--merge"): "merge", ("compare", "--scores"): "score"}


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"fedmed {__version__}")
        raise typer.Exit


def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune one medical language model across hospitals by exchanging LoRA adapters as files.

    Records never leave a hospital. For research evaluation, not for clinical use.

    Example: fedmed split && fedmed round && fedmed compare
    """


def _guard(command: Callable[..., None]) -> Callable[..., None]:
    """Turn Ctrl-C inside a command into our own error, before Typer makes an abort of it."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None

    return guarded


@functools.cache
def make_app(only: str | None = None) -> typer.Typer:
    """The Typer app with every command, or with the one that is called: the others' imports take time too."""
    app = typer.Typer(
        name="fedmed",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_about)
    groups: dict[str, typer.Typer] = {}
    for words, (module, function) in COMMANDS.items():
        name, _, subcommand = words.partition(" ")
        if only not in (None, name):
            continue
        command = _guard(expand(getattr(_module(module), function)))
        if subcommand:
            groups[name].command(subcommand)(command)
        elif any(other.startswith(f"{name} ") for other in COMMANDS):
            runs = name == "compare"  # without a subcommand it measures; the others show their help
            groups[name] = typer.Typer(invoke_without_command=runs, no_args_is_help=not runs, rich_markup_mode="rich")
            groups[name].callback()(command)
            app.add_typer(groups[name], name=name)
        else:
            app.command(name)(command)
    return app


def _module(name: str) -> Any:
    return importlib.import_module(f"fedmed_cli.cli.commands.{name}")


def _renamed(arguments: list[str]) -> list[str]:
    """The arguments with a command in place of an option that it once was, which is said."""
    for (command, option), name in RENAMED.items():
        if arguments[:1] == [command] and option in arguments:
            sys.stderr.write(f"fedmed: hint: 'fedmed {command} {option}' is now 'fedmed {command} {name}'\n")
            return [command, name, *(argument for argument in arguments[1:] if argument != option)]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run fedmed with `argv` (default: the process's arguments) and return its exit code."""
    from fedmed_cli.cli.screen import show_error

    # The matrices of LoRA are small: more BLAS threads only wait for each other, and change the last bits.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = _renamed(list(sys.argv[1:] if argv is None else argv))
    called = arguments[0] if arguments and arguments[0] in COMMANDS else None
    try:
        make_app(called)(args=arguments, prog_name="fedmed")
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except FedmedError as error:
        show_error(error)
        return error.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # so that the interpreter can flush at exit
        return 0
    except OSError as error:
        known = _known_os_error(error)
        if known is None:
            return _bug(error)
        show_error(known)
        return known.exit_code
    except MemoryError:
        show_error(MachineError("out of memory", hint="close other programs, or take a smaller batch or base model"))
        return MachineError.exit_code
    except Exception as error:
        return _bug(error)


def _known_os_error(error: OSError) -> FedmedError | None:
    where = f"{error.filename}: " if isinstance(error.filename, str) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(f"{where}no space left on the disk", hint="free some space; nothing was lost")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{where}permission denied")
    if error.errno in (errno.ENOTDIR, errno.EISDIR):
        return InputError(f"{where}{(error.strerror or '').lower()}")
    return None


def _bug(error: BaseException) -> int:
    """Show where a bug of ours happened: frames and the exception's type, without its message or any value."""
    if os.environ.get("FEDMED_DEBUG") == "1":
        traceback.print_exception(error)
        return 1
    lines = [f"fedmed: error: this is a bug in fedmed {__version__}: {type(error).__name__}"]
    for frame in traceback.extract_tb(error.__traceback__)[-6:]:
        lines.append(f"  at {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}")
    lines.append("fedmed: hint: report these lines; FEDMED_DEBUG=1 shows all (it may quote your data)")
    sys.stderr.write("\n".join(lines) + "\n")
    return 1
