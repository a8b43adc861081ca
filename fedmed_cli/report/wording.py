"""How the report writes numbers, and its sentence on whether federating helped."""

from __future__ import annotations

from fedmed_cli.intervals import FEW_GROUPS
from fedmed_cli.records.comparison import Comparison, Rate, Score
from fedmed_cli.records.measures import OVERALL, Interval, Loss

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(value: Interval | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{signed(value.mean, digits)} [{signed(value.low, digits)}, {signed(value.high, digits)}]"


def loss(value: Loss | Score | None) -> str:
    """Mean and half of its 95 % interval."""
    if value is None:
        return "not measured"
    mean = value.mean if isinstance(value, Loss) else value.loss
    return f"{mean:.4f} ± {1.96 * value.standard_error:.4f}"


def rate(value: Rate | None) -> str:
    """A share in percent with its interval."""
    if value is None:
        return "not measured"
    score = value.score
    return f"{100 * score.mean:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def joined(names: list[str] | tuple[str, ...]) -> str:
    """ "A, B and C" """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def sentence(text: str) -> str:
    """`text` with a capital at its start, else as it is."""
    return text[:1].upper() + text[1:]


def few_groups(number: int) -> str:
    """A warning where too few groups were resampled; empty where there are enough."""
    if number >= FEW_GROUPS:
        return ""
    return f"Only {count(number, 'group')} of examples: the intervals are rough ({FEW_GROUPS} or more are wanted)."


def verdict(record: Comparison | None) -> str | None:
    """Whether federating helped overall, from the interval of global adapter minus base alone."""
    score = record.scores.get("global", {}).get(OVERALL) if record else None
    if score is None or score.against_base is None or score.num_groups < 2:
        return None
    found = score.against_base
    if found.high < 0:
        return (
            f"On the held-out examples the global adapter is better than the base model: its loss is lower by "
            f"{-found.mean:.4f} nats per answer token (95 % interval {-found.high:.4f} to {-found.low:.4f})."
        )
    if found.low > 0:
        return (
            f"On the held-out examples the global adapter is worse than the base model: its loss is higher by "
            f"{found.mean:.4f} nats per answer token (95 % interval {found.low:.4f} to {found.high:.4f})."
        )
    return (
        "The held-out examples show no difference between global adapter and base model: "
        f"the 95 % interval {interval(found)} nats includes 0."
    )
