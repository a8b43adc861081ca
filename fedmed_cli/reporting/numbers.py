"""How numbers are written, on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmed_cli.intervals import FEW_GROUPS, student
from fedmed_cli.records.measures import Interval, Loss
from fedmed_cli.reporting.parts import Text
from fedmed_cli.text import number_of_bytes

if TYPE_CHECKING:
    from fedmed_cli.records.comparison import Rate, Score

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 4) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(value: Interval | None, digits: int = 4, scale: float = 1) -> str:
    """A difference with its interval, both times `scale`; empty without one."""
    if value is None:
        return ""
    mean, low, high = (signed(scale * number, digits) for number in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def loss(value: Loss | Score | None) -> str:
    """Mean and half of its 95 % interval (Student's, one degree of freedom less than groups), which one has not."""
    if value is None:
        return "not measured"
    mean = value.mean if isinstance(value, Loss) else value.loss
    if value.num_groups < 2:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {student(value.num_groups - 1) * value.standard_error:.4f}"


def rate(value: Rate | None) -> str:
    """A share in percent with its interval."""
    if value is None:
        return "not measured"
    score = value.score
    return f"{100 * score.mean:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def rate_change(value: Rate) -> str:
    """A share's difference from the base's in percentage points, with its interval."""
    return interval(value.against_base, 1, 100)


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def examples_in_groups(num_examples: int, num_groups: int) -> str:
    return f"{num_examples:,} in {count(num_groups, 'group')}"


def saved_bytes(adapter_bytes: int, base_bytes: int) -> str:
    """What an adapter takes, and how much less that is than the base model."""
    if not base_bytes:
        return number_of_bytes(adapter_bytes)
    saved = percent(1 - adapter_bytes / base_bytes)
    return f"{number_of_bytes(adapter_bytes)} instead of the model's {number_of_bytes(base_bytes)} ({saved} less)"


def joined(names: Sequence[str]) -> str:
    """ "A, B and C" """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def few_groups(number: int) -> list[Text]:
    """A note where too few groups were resampled."""
    if number >= FEW_GROUPS:
        return []
    why = f"the intervals are rough (at least {FEW_GROUPS} are recommended)" if number > 1 else "there is no interval"
    return [Text(f"Only {count(number, 'group')} of examples: {why}.", "note")]
