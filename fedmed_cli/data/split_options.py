"""What is looked for in data, and how `fedmed split` divides them: the options that are not the plan's, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from fedmed_cli.data.bad_rows import DEFAULT_MAX_BAD
from fedmed_cli.data.near_duplicates import SIMILARITY
from fedmed_cli.data.topics import DEFAULT_TOPICS
from fedmed_cli.errors import UsageError

if TYPE_CHECKING:
    from fedmed_cli.data import identifiers

Method = Literal["iid", "quantity", "dirichlet", "pathological", "column"]
METHODS: tuple[Method, ...] = get_args(Method)
Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_SHARES = {"validation": 0.1, "coordinator": 0.1, "test": 0.2}
MAX_PARQUET_SITES = 100


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What to look for in the data. `column` is the one whose values are divided among sites."""

    group_by: str | None = None
    label: str | None = None
    column: str | None = None
    near_duplicates: float | None = SIMILARITY
    phi: identifiers.Mode = "warn"
    max_bad: float = DEFAULT_MAX_BAD


@dataclass(frozen=True, kw_only=True)
class SplitOptions(IndexOptions):
    """The options of `fedmed split`. `column` is what the method of that name divides by; `assign` gives its values."""

    names: tuple[str, ...]
    method: Method
    assign: Mapping[str, Sequence[str]] | None = None
    alpha: float = 0.5
    sizes: tuple[int, ...] | None = None
    min_size: int | None = None
    labels_per_site: int = 2
    num_topics: int = DEFAULT_TOPICS
    shares: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SHARES))
    file_format: Format = "jsonl"

    @property
    def uses_topics(self) -> bool:
        """Whether labels are needed and no column has them."""
        return self.label is None and self.method in ("dirichlet", "pathological")

    def check(self) -> None:
        """UsageError where options do not go together."""
        shares = self.shares.values()
        if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise UsageError("the shares of validation, coordinator and test must leave something to train on")
        if self.method != "column" and self.assign:
            raise UsageError("--assign goes with --by column:NAME")
        if self.sizes and self.method not in ("iid", "dirichlet"):
            why = "a column's values have the sizes they have" if self.method == "column" else "this method draws them"
            raise UsageError(f"--sizes goes with --by iid or dirichlet: {why}")
        for site in self.assign or ():
            if site not in self.names:
                raise UsageError(f"--assign names site {site!r}, which is not among {', '.join(self.names)}")
        site_of: dict[str, str] = {}
        for site, values in (self.assign or {}).items():
            for value in values:
                if site_of.setdefault(value, site) != site:
                    raise UsageError(f"--assign gives {value!r} to both {site_of[value]} and {site}")
        if self.file_format == "parquet" and len(self.names) > MAX_PARQUET_SITES:
            raise UsageError(f"--format parquet is for at most {MAX_PARQUET_SITES} hospitals")


def parse_method(by: str) -> tuple[Method, str | None]:
    """The method of division that --by names, and the column of column:NAME."""
    if by.startswith("column:") and len(by) > len("column:"):
        return "column", by.removeprefix("column:")
    for method in METHODS:
        if by == method != "column":
            return method, None
    known = ", ".join(method for method in METHODS if method != "column")
    raise UsageError(f"--by: expected {known} or column:NAME, found {by!r}")


def default_names(count: int) -> tuple[str, ...]:
    """A, B, C, … for up to 26 hospitals, then H001, H002, …"""
    if count <= 26:
        return tuple(chr(ord("A") + i) for i in range(count))
    return tuple(f"H{i + 1:03d}" for i in range(count))
