"""What a round may be combined with, by the names that options and `aggregate.json` use.

The function of each name is in `aggregation/`: `methods.COMBINE`, `robust.MEANS` and `weighting.WEIGH`. What stands
here needs no numpy, so that `fedmed --help` and the records need none. docs/aggregation.md shows these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LARGEST_STEP = 10.0  # of the server


@dataclass(frozen=True)
class Method:
    """How weighted updates become one adapter; `about` is for help, `source` names the paper.

    A round may start from the result where `starts_round`. Where `takes_step`, the server's step may have another
    length than 1, and momentum.
    """

    about: str
    source: str
    starts_round: bool = True
    takes_step: bool = False


@dataclass(frozen=True)
class RobustMean:
    """A mean of updates that some bad ones cannot move far; `source` names the paper."""

    about: str
    source: str


@dataclass(frozen=True)
class Weighting:
    """What a site counts by.

    `claim` is what of its claims counts before any evidence (None: all sites alike). The coordinator measures each
    contribution where `measures`, sites score each other's where `reads_scores`; it takes `fewest_sites`.
    """

    about: str
    claim: Literal["tokens", "examples"] | None = "tokens"
    measures: bool = False
    reads_scores: bool = False
    fewest_sites: int = 1


METHODS = {
    "svd": Method("best at the plan's rank", "Eckart and Young, 1936", takes_step=True),
    "stack": Method("exact at a higher rank, for release", "FLoRA, arXiv 2409.05976", starts_round=False),
    "factor-mean": Method("means of A and of B, for comparison", "FedIT, arXiv 2305.05644"),
}

ROBUST_MEANS = {
    "none": RobustMean("the weighted mean", ""),
    "geometric-median": RobustMean("point with the least sum of distances", "RFA, arXiv 1912.13445"),
    "multi-krum": RobustMean("mean of the updates nearest to each other", "Krum, arXiv 1703.02757"),
    "centred-clipping": RobustMean("mean with each deviation clipped", "arXiv 2012.10333"),
}

WEIGHTINGS = {
    "agentic": Weighting("the coordinator's measurement", measures=True),
    "tokens": Weighting("claimed answer tokens, capped"),
    "examples": Weighting("claimed examples, capped", claim="examples"),
    "uniform": Weighting("all sites equal", claim=None),
    "crosseval": Weighting("the other sites' scores", reads_scores=True, fewest_sites=4),
    "self-reported": Weighting("its own reported losses, for comparison"),
}


def list_choices(table: Mapping[str, Method | RobustMean | Weighting]) -> str:
    """The names of a table with what each means, for help."""
    *first, last = (f"{name} ({row.about})" for name, row in table.items())
    return f"{', '.join(first)} or {last}"
