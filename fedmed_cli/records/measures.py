"""Parts of several records: a loss, an interval, and what differs from run to run."""

from __future__ import annotations

from dataclasses import dataclass

from fedmed_cli.records.checks import check_not_negative

OVERALL = "overall"
COORDINATOR = "coordinator"
Run = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Loss:
    """Mean loss in nats per supervised token, with its standard error over groups of examples."""

    mean: float
    standard_error: float
    num_examples: int
    num_groups: int
    num_tokens: int

    def __post_init__(self) -> None:
        for name in ("standard_error", "num_examples", "num_groups", "num_tokens"):  # a difference's mean may be
            check_not_negative(**{f"a loss's {name}": getattr(self, name)})


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval's low must not be above its high, found {self.low:g} and {self.high:g}")
