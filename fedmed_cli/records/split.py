"""`data/split.json` and `division.json`: what was divided, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Run


@dataclass(frozen=True)
class SiteCounts:
    """How many examples a site has in each set, what they are made of, and how far that is from the pool."""

    train: int
    validation: int
    coordinator: int
    test: int
    labels: dict[str, int]
    jensen_shannon: float
    phi: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.train + self.validation + self.coordinator + self.test


@dataclass(frozen=True)
class BadRowCounts:
    """Rows of one kind that are no examples, and the places of the first hundred as "file:line"."""

    count: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class NearDuplicates:
    """The search for texts that are nearly the same, and what the check of the written files found.

    `num_rows` rows are like a row that no group or text united them with; they were united. The check compared
    `num_pairs` pairs of rows in two sets exactly; `num_torn` rows are in a pair of at least the similarity, which
    the search, an estimate, has missed.
    """

    similarity: float
    num_rows: int
    num_pairs: int
    num_torn: int


@dataclass(frozen=True)
class SplitRecord(Record):
    """`data/split.json`: what `split` did."""

    FORMAT: ClassVar[str] = "split"

    source: Literal["corpus", "file", "hub"]
    source_digest: str
    method: Literal["iid", "quantity", "dirichlet", "pathological", "column"]
    column: str | None
    label_column: str | None
    group_by: str | None
    alpha: float | None
    seed: int
    limit: int | None
    requested_sizes: tuple[int, ...] | None
    shares: dict[str, float]
    num_examples: int
    num_groups: int
    num_moved: int
    checks: dict[str, int]
    sites: dict[str, SiteCounts]
    bad_rows: dict[str, BadRowCounts] = field(default_factory=dict)
    labels_per_site: int | None = None
    max_bad: float = 0.0
    min_size: int | None = None
    near_duplicates: NearDuplicates | None = None
    num_left_out: int = 0
    num_turns_left_out: int = 0
    phi: Literal["off", "warn", "block", "redact"] = "off"
    phi_found: dict[str, int] = field(default_factory=dict)
    topics: int | None = None
    run: Run = field(default_factory=dict)


@dataclass(frozen=True)
class DivisionRecord(Record):
    """`data/SITE/division.json`: how a hospital's own file was divided into train, validation and test."""

    FORMAT: ClassVar[str] = "division"

    site: str
    source_digest: str
    group_by: str | None
    seed: int
    train: int
    validation: int
    test: int
    num_groups: int
    bad_rows: dict[str, BadRowCounts] = field(default_factory=dict)
    near_duplicates: NearDuplicates | None = None
    phi: Literal["off", "warn", "block", "redact"] = "off"
    phi_found: dict[str, int] = field(default_factory=dict)
    run: Run = field(default_factory=dict)
