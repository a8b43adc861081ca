"""What of the data may be shown or leave: names that are names of columns, and values that many groups have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedmed_cli.errors import UsageError

MIN_GROUPS = 10
MAX_VALUE_LENGTH = 80
MAX_NAMES = 30
# Names that no cell of a data set has by chance, in lower case.
KNOWN_COLUMNS = frozenset(
    "question answer prompt completion instruction output response input long_answer patient doctor description "
    "context messages conversations conversation text id source label options answer_idx cop final_decision".split()
)
_COLUMN_NAME = re.compile(r"(?=.{1,30}\Z)_?[A-Za-z]+(?:_[A-Za-z]+)*_?[0-9]{0,2}", re.ASCII)


def list_columns(names: Iterable[str], is_header: bool = True) -> str:
    """The names of columns for a message, where all look like such; else only how many there are.

    Where it is not known that they are a header, they may be the first row of data: then one must be a known name.
    """
    names = sorted(set(names))
    is_known = is_header or any(name.lower() in KNOWN_COLUMNS for name in names)
    if is_known and all(map(_COLUMN_NAME.fullmatch, names)):
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ", ".join(names[:MAX_NAMES]) + more or "none"
    return f"{len(names)} columns" if len(names) > 1 else "1 column"


def may_leave(value: str, num_groups: int) -> bool:
    """Whether a column's value may be shown or be in a record: 10 groups have it, and it is a label rather than a text.

    A group is what must not be divided, such as a patient: many rows of one patient are one group.
    """
    return num_groups >= MIN_GROUPS and len(value) <= MAX_VALUE_LENGTH and value.isprintable()


def check_not_group(option: str, column: str | None, group_by: str | None) -> None:
    """UsageError where the values of a column that are to be shown are the groups themselves, such as patients."""
    if column is not None and column == group_by:
        raise UsageError(f"{option}: {column!r} is the column that groups examples, so its values may name patients")
