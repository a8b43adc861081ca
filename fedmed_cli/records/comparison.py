"""`reports/*.json`: adapters measured on the same examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedmed_cli.records.checks import MAX_ROUND, check_digest, check_not_negative, check_range, check_site_name
from fedmed_cli.records.codec import OMIT_IF_EMPTY, Record
from fedmed_cli.records.measures import Interval, Run

# Cells of a table of scores. A record of 1 MB has room for fewer than half as many scores, and each adapter is measured
# on each part: a larger table has hardly a score in it.
MAX_CELLS = 20_000


def check_table(what: str, rows: Mapping[str, Collection[str]]) -> None:
    """ValueError where a table of these rows, each with its columns, would be far larger than what stands in it."""
    columns = {name for row in rows.values() for name in row}
    if len(rows) * len(columns) > MAX_CELLS:
        raise ValueError(
            f"{what}: expected a table of at most {MAX_CELLS:,} cells, found {len(rows):,} by {len(columns):,}"
        )


@dataclass(frozen=True)
class Tally:
    """On how many examples an adapter's loss is below the base's (a win), equal to it, or above it (a loss)."""

    wins: int
    ties: int
    losses: int

    def __post_init__(self) -> None:
        check_not_negative(wins=self.wins, ties=self.ties, losses=self.losses)


@dataclass(frozen=True)
class Score:
    """One adapter's loss on one part of the test examples; differences are paired, negative is better."""

    loss: float
    perplexity: float
    standard_error: float
    num_examples: int
    num_groups: int
    num_tokens: int
    against_base: Interval | None
    against_global: Interval | None
    tally: Tally | None = field(default=None, metadata=OMIT_IF_EMPTY)

    def __post_init__(self) -> None:
        for name in ("loss", "perplexity", "standard_error", "num_examples", "num_groups", "num_tokens"):
            check_not_negative(**{f"a score's {name}": getattr(self, name)})


@dataclass(frozen=True)
class Rate:
    """A score from 0 to 1 (above is better) with its 95 % interval, and its paired difference from the base's."""

    score: Interval
    against_base: Interval | None

    def __post_init__(self) -> None:
        check_range(0, 1, **{"a rate": self.score.mean})


@dataclass(frozen=True)
class OverlapScore:
    """How much one adapter's generated answers share with the reference answers, as means over questions."""

    rouge_l: Rate
    token_f1: Rate
    num_empty: int
    num_unfinished: int


@dataclass(frozen=True)
class Generated:
    """Answers generated to a sample of the test questions. Their text is kept nowhere."""

    num_questions: int
    num_groups: int
    max_new_tokens: int
    adapters: dict[str, OverlapScore]


@dataclass(frozen=True)
class ChoiceScore:
    """One adapter's accuracy on multiple-choice questions.

    `accuracy` takes the option of the highest summed log-probability, `accuracy_norm` that of the highest
    log-probability per character. `by_letter` lists the options in the prompt and takes the most probable letter
    (or word: yes, no, maybe). `asked` is the accuracy of letters that the model was asked to write; an answer
    without one (`num_unparseable`) counts as wrong.
    """

    accuracy: Rate
    accuracy_norm: Rate
    by_letter: Rate
    asked: Rate | None
    num_unparseable: int


@dataclass(frozen=True)
class MultipleChoice:
    """Multiple-choice questions of a file: what they are, and each adapter's score. `chance` is that of guessing."""

    examples: str
    examples_digest: str
    layout: Literal["options", "columns", "decision"]
    num_questions: int
    num_skipped: int
    num_asked: int
    chance: float
    adapters: dict[str, ChoiceScore]


@dataclass(frozen=True)
class Shares:
    """What share of an upper bound's gain the global adapter reaches, by what the gain is counted from.

    That is the base, the best of the hospitals that trained alone, and their mean; null where they were not measured,
    or where the bound is not better than them beyond chance.
    """

    base: Interval | None = None
    best_alone: Interval | None = None
    mean_alone: Interval | None = None


@dataclass(frozen=True)
class Comparison(Record):
    """`reports/compare.json`: adapters measured on examples that nobody trained on or chose weights with.

    `scores` is by adapter and site (and "overall"); `columns` by column, value and adapter. `worst_sites` names
    for each adapter the site where it gains least over the base. `on_other_sites` is, by adapter of one site,
    the global adapter's loss minus that adapter's on all other sites' examples. `joined` is, by site, the loss of what
    it uses now, its private adapter or else the global one, minus that of what it reached alone, on its own examples.
    `recovered` is what
    the global adapter reaches of each upper bound's gain. `site` is the hospital that measured, if it was one.
    """

    FORMAT: ClassVar[str] = "comparison"

    plan: str
    base_fingerprint: str
    examples: str
    examples_digest: str
    num_resamples: int
    seed: int
    adapters: dict[str, str | None]
    scores: dict[str, dict[str, Score]]
    choices: MultipleChoice | None = field(default=None, metadata=OMIT_IF_EMPTY)
    columns: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    generated: Generated | None = field(default=None, metadata=OMIT_IF_EMPTY)
    num_skipped: int = field(default=0, metadata=OMIT_IF_EMPTY)
    num_truncated: int = field(default=0, metadata=OMIT_IF_EMPTY)
    on_other_sites: dict[str, Interval] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    joined: dict[str, Interval] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    recovered: dict[str, Shares] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    round: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    site: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    worst_sites: dict[str, str] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("plan", "base_fingerprint", "examples_digest"):
            check_digest(name, getattr(self, name))
        check_range(1, MAX_ROUND, round=self.round)
        for name, digest in self.adapters.items():
            if digest is not None:
                check_digest(f"adapters.{name[:80]}", digest)
        for name in (*([self.site] if self.site is not None else []), *self.worst_sites.values(), *self.joined):
            check_site_name(name)
        check_table("scores", self.scores)
        for column, values in self.columns.items():
            check_table(f"columns.{column[:80]}", values)
        for field_name in ("on_other_sites", "recovered"):
            if unknown := sorted(set(getattr(self, field_name)) - set(self.adapters)):
                raise ValueError(f"{field_name}: {unknown[0][:80]!a} is none of the adapters")


@dataclass(frozen=True)
class MatrixSite:
    """What one hospital measured on its own examples: the score of each adapter."""

    examples_digest: str
    num_examples: int
    num_groups: int
    scores: dict[str, Score]


@dataclass(frozen=True)
class Matrix(Record):
    """`reports/matrix.json`: every hospital's comparison in one table, site by adapter.

    `means` is each adapter's loss as a plain mean over sites, whatever their sizes; `worst_sites` names for each
    adapter the site where it gains least over the base; `files` gives the digest of each comparison by its site.
    """

    FORMAT: ClassVar[str] = "matrix"

    plan: str
    base_fingerprint: str
    round: int | None
    adapters: dict[str, str | None]
    sites: dict[str, MatrixSite]
    means: dict[str, float]
    worst_sites: dict[str, str]
    files: dict[str, str]
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("plan", "base_fingerprint"):
            check_digest(name, getattr(self, name))
        check_range(1, MAX_ROUND, round=self.round)
        for name in (*self.sites, *self.worst_sites.values(), *self.files):
            check_site_name(name)


@dataclass(frozen=True)
class Pooled(Record):
    """`reports/pooled/pooled.json`: one adapter trained on all sites' examples together, as an upper bound.

    `key` is the digest of all that decides its training; `rounds` is the federation's number whose examples it walks;
    `learning_rate` is its own where it is not the plan's.
    """

    FORMAT: ClassVar[str] = "pooled"

    key: str
    plan: str
    base_fingerprint: str
    parent: str
    adapter: str
    examples_digest: str
    num_examples: int
    num_trained_tokens: int
    num_federated_tokens: int
    rounds: int
    max_steps: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    losses: tuple[float, ...]
    learning_rate: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("key", "plan", "base_fingerprint", "parent", "adapter", "examples_digest"):
            check_digest(name, getattr(self, name))
