"""The errors that fedmed reports to people, each kind with its exit code."""

from __future__ import annotations


class FedmedError(Exception):
    """A failure that the user can understand and act on.

    `message` is one line, lower case, without a full stop: it names the thing, what was expected and
    what was found. `hint` says what to do next. Neither ever quotes an example's text.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FedmedError):
    """Options that contradict each other or the plan."""

    exit_code = 2


class InputError(FedmedError):
    """Input that is missing, corrupt or of an unknown version."""

    exit_code = 3


class CombineError(FedmedError):
    """Adapters that cannot be combined, or contributions that were all rejected."""

    exit_code = 4


class MachineError(FedmedError):
    """Something the machine lacks: memory, disk space, a GPU, a model while offline."""

    exit_code = 5


class ConflictError(FedmedError):
    """Something would be overwritten, or another fedmed works in this workspace."""

    exit_code = 6


class BusyError(ConflictError):
    """Another fedmed works in this workspace: it ends by itself."""


class TrustError(FedmedError):
    """A digest, signature or lineage that does not hold."""

    exit_code = 7


class Interrupted(FedmedError):
    """The user pressed Ctrl-C."""

    exit_code = 130
