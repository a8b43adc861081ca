"""Every format that fedmed writes, as frozen dataclasses with strict reading and writing.

docs/formats.md describes the fields. JSON records start with `format`, `version` and `fedmed_version`;
what differs from run to run is in the one object `run`.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedmed_cli import __version__
from fedmed_cli.codec import (
    LATER,
    Record,
    check_header,
    control_character,
    decode,
    decode_fields,
    encode,
    parse_json,
    read_file,
    shown,
)
from fedmed_cli.digests import sha256_json
from fedmed_cli.errors import InputError

OVERALL = "overall"
COORDINATOR = "coordinator"
MAX_MODULES = 20_000
MAX_PARAMETERS = 2**31
MAX_PLAN_BYTES = 200_000
MAX_METRICS_BYTES = 1_000_000_000
MAX_LAYERS = 1024
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
RESERVED_NAMES = frozenset({"base", "global", "best", "train", "test", "coordinator"})
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z0-9_]+|\*))*")
# An Ed25519 key takes 51 bytes in OpenSSH's form, which are 68 characters of base64; all begin alike.
_PUBLIC_KEY = re.compile(r"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")

Run = dict[str, str | int | float | None]


def check_site_name(name: str) -> str:
    """Return `name`, or raise ValueError where it may not become part of a path."""
    if not SITE_NAME.fullmatch(name):
        raise ValueError(f"site name {name!r} must match {SITE_NAME.pattern}")
    if name.lower() in RESERVED_NAMES:
        raise ValueError(f"site name {name!r} is reserved")
    return name


def check_site_names(names: tuple[str, ...]) -> None:
    """Raise ValueError unless every name is allowed and unique without regard to case."""
    for name in names:
        check_site_name(name)
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise ValueError(f"site name {name!r} appears twice (upper and lower case count as one)")


def _check_digest(name: str, value: str) -> None:
    if not _DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 64 hexadecimal digits, found {value[:80]!r}")


def _check_range(low: float, high: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, found {value!r}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, found {value!r}")


# --- the plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The base model all sites agree on.

    `linear` gives every linear module's shape: a name maps to (out, in); a name in which `*` stands for
    the layer maps to (out, in, layers).
    """

    name: str
    revision: str
    fingerprint: str
    num_bytes: int
    linear: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.name) > 200:
            raise ValueError("base.name must be 1 to 200 printable characters")
        if len(self.revision) > 100 or not self.revision.isprintable():
            raise ValueError("base.revision must be at most 100 printable characters")
        _check_digest("base.fingerprint", self.fingerprint)
        _check_not_negative(**{"base.num_bytes": self.num_bytes})
        if not self.linear:
            raise ValueError("base.linear names no module")
        for name, shape in self.linear.items():
            if not _MODULE.fullmatch(name) or name.count("*") > 1:
                raise ValueError(f"base.linear: {name[:80]!r} is not a module name")
            if len(shape) != (3 if "*" in name else 2) or any(not 1 <= size <= 2**24 for size in shape):
                raise ValueError(f"base.linear: {name[:80]!r} has an unusable shape {list(shape)[:5]}")
            if "*" in name and shape[2] > MAX_LAYERS:
                raise ValueError(f"base.linear: {name[:80]!r} has more than {MAX_LAYERS} layers")
        if sum(shape[2] if len(shape) == 3 else 1 for shape in self.linear.values()) > MAX_MODULES:
            raise ValueError(f"base.linear names more than {MAX_MODULES} modules")

    @cached_property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Every linear module by its full name: (out, in)."""
        result = {}
        for name, shape in self.linear.items():
            for layer in range(shape[2]) if "*" in name else [0]:
                result[name.replace("*", str(layer))] = (shape[0], shape[1])
        return dict(sorted(result.items()))


@dataclass(frozen=True)
class Lora:
    """The LoRA configuration: every adapter of the federation has this rank, alpha and these targets."""

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if not 1 <= self.r <= 1024:
            raise ValueError(f"lora.r must be from 1 to 1024, found {self.r}")
        if not 0 < self.alpha <= 65536:
            raise ValueError(f"lora.alpha must be above 0 and at most 65536, found {self.alpha}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("lora.targets must name at least one module, each once")
        for target in self.targets:
            if not _TARGET.fullmatch(target):
                raise ValueError(f"lora.targets: {target[:80]!r} is not a module name")

    @property
    def scaling(self) -> float:
        """s = alpha / r: the adapter adds s·B·A to the weight."""
        return self.alpha / self.r


@dataclass(frozen=True)
class Prompt:
    """The texts around a question; the base model's own chat template wraps them."""

    system: str = "You answer health questions clearly and briefly for patients."
    user: str = "{question}"

    def __post_init__(self) -> None:
        if self.user.count("{question}") != 1:
            raise ValueError("prompt.user must contain {question} once")
        if len(self.system) > 4000 or len(self.user) > 4000:
            raise ValueError("prompt texts may have at most 4000 characters")
        for name in ("system", "user"):
            if control := control_character(getattr(self, name)):
                raise ValueError(f"prompt.{name} holds the control character {control}")


@dataclass(frozen=True)
class Training:
    """The training options all sites agree on. `max_steps` is the default of a round; a site may change it.

    `fedprox_mu` pulls a site's factors to those it started from (FedProx, Li et al. 2020); a linear or cosine
    schedule spans `lr_scheduler_rounds` rounds.
    """

    fedprox_mu: float = 0.0
    learning_rate: float = 2e-4
    lr_scheduler_rounds: int = 1
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = 1.0
    max_length: int = 1024
    max_steps: int = 100
    seed: int = 0
    warmup_steps: int = 0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"training.learning_rate must be above 0 and at most 1, found {self.learning_rate}")
        if not 16 <= self.max_length <= 1_000_000:
            raise ValueError(f"training.max_length must be from 16 to 1000000, found {self.max_length}")
        if not 1 <= self.max_steps <= 10_000_000:
            raise ValueError(f"training.max_steps must be from 1 to 10000000, found {self.max_steps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"training.seed must be from 0 to 2^63 - 1, found {self.seed}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"training.max_grad_norm must be above 0, found {self.max_grad_norm}")
        if not 1 <= self.lr_scheduler_rounds <= 100_000:
            raise ValueError(f"training.lr_scheduler_rounds must be from 1 to 100000, found {self.lr_scheduler_rounds}")
        _check_not_negative(
            **{f"training.{name}": getattr(self, name) for name in ("fedprox_mu", "warmup_steps", "weight_decay")}
        )

    def agreed(self) -> dict[str, Any]:
        """What enters the plan's digest: all options, but those above that came later only where they act."""
        value: dict[str, Any] = encode(self)
        if not self.fedprox_mu:
            del value["fedprox_mu"]
        if self.lr_scheduler_rounds == 1:
            del value["lr_scheduler_rounds"]
        return value


@dataclass(frozen=True)
class Sites:
    """Who takes part, and how many contributions a round needs at least.

    `ranks` names the sites that train a lower rank than the plan's.
    """

    names: tuple[str, ...]
    min_sites: int
    ranks: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_names(self.names)
        self._check_keys()
        if not self.names:
            raise ValueError("sites.names names no site")
        if not 1 <= self.min_sites <= len(self.names):
            raise ValueError(f"sites.min_sites must be from 1 to {len(self.names)}, found {self.min_sites}")
        for name, rank in self.ranks.items():
            if name not in self.names:
                raise ValueError(f"sites.ranks names {name[:80]!r}, which is no site")
            if rank < 1:
                raise ValueError(f"sites.ranks.{name} must be at least 1, found {rank}")

    def _check_keys(self) -> None:
        """ValueError unless every key is one line of Ed25519 for somebody who takes part, and nobody else's."""
        owners: dict[str, str] = {}
        for name, key in self.keys.items():
            if name != COORDINATOR and name not in self.names:
                raise ValueError(f"sites.keys: {name[:80]!r} is neither a site nor {COORDINATOR}")
            if not _PUBLIC_KEY.fullmatch(key):
                raise ValueError(f"sites.keys.{name} must be 'ssh-ed25519 AAAA…' without a comment")
            if key in owners:
                raise ValueError(f"sites.keys: {owners[key]} and {name} have the same key")
            owners[key] = name

    @property
    def digest(self) -> str:
        value = encode(self)
        if not self.keys:
            del value["keys"]
        return sha256_json(value)


_PLAN_COMMENTS = {
    "base": "The base model. Its fingerprint (weights, config, tokenizer, template) must match at every site;\n"
    "# `linear` gives the shape of each linear module: (out, in), and the number of layers where the name has a *.",
    "lora": "What every site trains: LoRA of rank r with scaling alpha / r on the target modules.",
    "prompt": "Plain texts; the base model's own chat template wraps them.",
    "training": "Agreed by all sites. Device and batch size are free; max_steps is the default of a round.",
    "sites": "Who takes part, and the fewest contributions a round may be made of. Not part of the plan digest.\n"
    "# `keys` holds the public key of a site or of the coordinator: what they send must be signed with it.",
}


@dataclass(frozen=True)
class Plan:
    """`federation.toml`: what all sites agree on."""

    base: Base
    lora: Lora
    prompt: Prompt
    training: Training
    sites: Sites

    FORMAT: ClassVar[str] = "plan"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for target in self.lora.targets:
            if not any(_is_target(name, target) for name in self.base.modules):
                leaves = sorted({name.rsplit(".", 1)[-1][:40] for name in self.base.modules})
                known = ", ".join(leaves[:20]) + (", …" if len(leaves) > 20 else "")
                raise ValueError(f"lora.targets: the base has no linear module {target[:80]!r} (it has {known})")
        smallest = min(min(shape) for shape in self.modules.values())
        if self.lora.r > smallest:
            raise ValueError(f"lora.r is {self.lora.r}, but a target module has a side of {smallest}")
        for name, rank in self.sites.ranks.items():
            if rank > self.lora.r:
                raise ValueError(f"sites.ranks.{name} is {rank}, above the plan's rank {self.lora.r}")
        if (parameters := self.lora.r * sum(map(sum, self.modules.values()))) > MAX_PARAMETERS:
            raise ValueError(f"an adapter would have {parameters:,} parameters, expected at most {MAX_PARAMETERS:,}")

    @cached_property
    def modules(self) -> dict[str, tuple[int, int]]:
        """The target modules, sorted by name: (out, in)."""
        return {
            name: shape
            for name, shape in self.base.modules.items()
            if any(_is_target(name, target) for target in self.lora.targets)
        }

    def rank_of(self, site: str) -> int:
        """The rank that a site trains."""
        return self.sites.ranks.get(site, self.lora.r)

    @cached_property
    def digest(self) -> str:
        """Digest of what the sites agree on: base, lora, prompt and training (not sites)."""
        parts = {name: encode(getattr(self, name)) for name in ("base", "lora", "prompt")}
        return sha256_json(parts | {"training": self.training.agreed()})

    def to_bytes(self) -> bytes:
        lines = [
            "# The plan of a fedmed federation. Send this file to every site; nobody edits it afterwards.",
            f'format = "fedmed/{self.FORMAT}"',
            f"version = {self.VERSION}",
            f"fedmed_version = {_toml(__version__)}",
        ]
        for name, comment in _PLAN_COMMENTS.items():
            lines += ["", f"# {comment}", f"[{name}]"]
            values = encode(getattr(self, name))
            tables = {key: value for key, value in values.items() if isinstance(value, dict)}
            lines += [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
            for key, table in tables.items():
                lines += [f"[{name}.{key}]"] * bool(table) + [f"{_toml(k)} = {_toml(v)}" for k, v in table.items()]
        return ("\n".join(lines) + "\n").encode("utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        return cls.from_bytes(read_file(path, MAX_PLAN_BYTES), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Plan:
        if len(data) > MAX_PLAN_BYTES:
            raise InputError(f"{name}: expected at most {MAX_PLAN_BYTES:,} bytes, found {len(data):,}")
        # tomllib's time grows with the square of the number of dots in one key.
        if max(line.count(b".") for line in data.split(b"\n")) > 500 or data.count(b".") > 10_000:
            raise InputError(f"{name}: expected at most 500 dots in a line and 10,000 in all, found more")
        try:
            value = tomllib.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: is not UTF-8 at byte {error.start}") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{name}: is not TOML ({str(error)[:200]})") from None
        except RecursionError:
            raise InputError(f"{name}: nested too deep") from None
        except ValueError:  # not TOMLDecodeError: from int()
            raise InputError(f"{name}: a number has too many digits") from None
        rest = check_header(value, cls.FORMAT, cls.VERSION, name)
        try:
            return typing.cast(Plan, decode_fields(cls, rest, ""))
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None


def _is_target(module: str, target: str) -> bool:
    """PEFT's rule for a list of target modules: the whole name, or its end after a dot."""
    return module == target or module.endswith("." + target)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    # A JSON string, integer or list of those is a valid TOML value, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- records ----------------------------------------------------------------------------------------


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
            _check_not_negative(**{f"a loss's {name}": getattr(self, name)})


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


@dataclass(frozen=True)
class Contribution(Record):
    """`contribution.json`: what a site says about its adapter. Numbers, enums and digests only."""

    FORMAT: ClassVar[str] = "contribution"

    site: str
    round: int
    plan: str
    sites: str
    base_fingerprint: str
    parent: str
    adapter: str
    adapter_bytes: int
    base_bytes: int
    num_examples: int
    num_tokens: int
    num_truncated: int
    num_skipped: int
    max_steps: int
    num_trained_examples: int
    num_trained_tokens: int
    per_device_train_batch_size: int
    losses: tuple[float, ...]
    validation_before: Loss | None
    validation_after: Loss | None
    update_norm: float
    files: dict[str, str]
    gradient_accumulation_steps: int = 1
    kept_step: int | None = None
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        if self.round < 1:
            raise ValueError(f"round must be at least 1, found {self.round}")
        for name in ("plan", "sites", "base_fingerprint", "parent", "adapter"):
            _check_digest(name, getattr(self, name))
        _check_files(self.files)
        counts = ("adapter_bytes", "base_bytes", "num_examples", "num_tokens", "num_truncated", "num_skipped")
        trained = ("max_steps", "num_trained_examples", "num_trained_tokens", "per_device_train_batch_size")
        _check_not_negative(**{name: getattr(self, name) for name in (*counts, *trained, "update_norm")})
        _check_not_negative(**{f"losses[{i}]": loss for i, loss in enumerate(self.losses)})
        for part in ("before", "after"):
            measured = getattr(self, f"validation_{part}")
            _check_not_negative(**{f"validation_{part}.mean": measured.mean if measured else 0.0})
        _check_range(1, 1_000_000, gradient_accumulation_steps=self.gradient_accumulation_steps)
        _check_range(1, max(1, len(self.losses)), kept_step=self.kept_step)
        if len(self.losses) > self.max_steps:
            raise ValueError(f"losses must be at most max_steps ({self.max_steps}) many, found {len(self.losses)}")

    @property
    def reduction(self) -> float:
        """The share of the base model's bytes that need not travel, from 0 to 1."""
        return 1 - self.adapter_bytes / self.base_bytes if self.base_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        body = encode(self) | {"reduction": round(self.reduction, 6)}
        if self.gradient_accumulation_steps == 1:
            del body["gradient_accumulation_steps"]
        if self.kept_step is None:
            del body["kept_step"]
        return self.header() | dict(sorted(body.items()))

    @classmethod
    def from_dict(cls, value: Any, name: str) -> Contribution:
        if isinstance(value, dict):
            stated = value.get("reduction")
            value = {key: part for key, part in value.items() if key != "reduction"}
            record = super().from_dict(value, name)
            if stated != round(record.reduction, 6):
                raise InputError(f"{name}: reduction must be {record.reduction:.6f}, found {str(stated)[:80]}")
            return record
        return super().from_dict(value, name)


def _check_files(files: dict[str, str]) -> None:
    for name, value in files.items():
        if not 0 < len(name) <= 80 or not name.isascii() or not name.isprintable():
            raise ValueError(f"files: {name[:80]!a} is no file name")
        _check_digest(f"files.{name}", value)


Verdict = Literal["accepted", "clipped", "rejected"]
Method = Literal["svd", "stack", "factor-mean"]
Robust = Literal["none", "geometric-median", "multi-krum", "centred-clipping"]
Weights = Literal["tokens", "examples", "uniform", "agentic", "crosseval", "self-reported"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval's low must not be above its high, found {self.low:g} and {self.high:g}")


@dataclass(frozen=True)
class Evidence:
    """What the coordinator knows of one contribution. Gains are in nats per answer token, above 0 is better.

    `num_examples`, `num_tokens` and `reported_gain` are the site's own claims. `gain` is the coordinator's
    measurement of the adapter against the one the round started from; `left_out_gain` is what the round
    gains when this site is left out, dilution aside (None where it was not tried).
    """

    num_examples: int
    num_tokens: int
    reported_gain: float | None
    update_norm: float
    cosines: dict[str, float]
    copies: tuple[str, ...]
    gain: Interval | None
    gain_standard_error: float | None
    left_out_gain: Interval | None

    def __post_init__(self) -> None:
        _check_not_negative(num_examples=self.num_examples, num_tokens=self.num_tokens, update_norm=self.update_norm)
        for name in (*self.cosines, *self.copies):
            check_site_name(name)
        for name, cosine in self.cosines.items():
            _check_range(-1.000001, 1.000001, **{f"cosines.{name}": cosine})


@dataclass(frozen=True)
class SiteDecision:
    """What the coordinator decided about one contribution, from which evidence, and why.

    The update enters the result with `server_lr · weight · clip_factor`. `prior` is the weight before the
    coordinator's own evidence, `score` what moved it (lower is better).
    """

    adapter: str
    contribution: str
    verdict: Verdict
    weight: float
    prior: float
    clip_factor: float
    score: float | None
    evidence: Evidence
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_digest("adapter", self.adapter)
        _check_digest("contribution", self.contribution)
        _check_not_negative(prior=self.prior)
        _check_range(0, 2, weight=self.weight)
        _check_range(0, 1, clip_factor=self.clip_factor)


@dataclass(frozen=True)
class Truncation:
    """Relative Frobenius error of the result against the exact weighted mean, over all modules and for each."""

    overall: float
    modules: dict[str, float]

    def __post_init__(self) -> None:
        for name, value in {OVERALL: self.overall, **self.modules}.items():
            _check_not_negative(**{f"truncation of {name[:200]}": value})


@dataclass(frozen=True)
class Examination:
    """What the coordinator measured on the examples that it decides with. These numbers are no result."""

    examples_digest: str
    num_examples: int
    num_groups: int
    parent: Loss
    result: Loss
    server_lr_losses: dict[str, float]


@dataclass(frozen=True)
class Aggregate(Record):
    """`aggregate.json`: what a global adapter was made of."""

    FORMAT: ClassVar[str] = "aggregate"

    round: int
    plan: str
    sites_digest: str
    base_fingerprint: str
    parent: str
    adapter: str
    method: Method
    weights: Weights
    robust: Robust
    num_malicious: int
    clip: float | None
    server_lr: float
    server_momentum: float
    sites: dict[str, SiteDecision]
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    examination: Examination | None
    truncation: Truncation
    files: dict[str, str]
    parent_record: str | None = None
    signers: dict[str, str] = field(default_factory=dict)
    run: Run = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As in `Record`, without the two fields above where they say nothing."""
        value = super().to_dict()
        for name in ("parent_record", "signers"):
            if not value[name]:
                del value[name]
        return value

    def __post_init__(self) -> None:
        if self.round < 1:
            raise ValueError(f"round must be at least 1, found {self.round}")
        for name in ("plan", "sites_digest", "base_fingerprint", "parent", "adapter"):
            _check_digest(name, getattr(self, name))
        if self.parent_record is not None:
            _check_digest("parent_record", self.parent_record)
        for name in (*self.sites, *self.missing, *self.excluded, *self.signers):
            check_site_name(name)
        for name, signer in self.signers.items():
            if not _FINGERPRINT.fullmatch(signer):
                raise ValueError(f"signers.{name} must be 'SHA256:' and 43 characters, found {shown(signer)}")
            if name not in self.sites:
                raise ValueError(f"signers.{name}: no contribution of this site is named")
        if not self.sites:
            raise ValueError("sites names no contribution")
        _check_range(0, 100, server_lr=self.server_lr, clip=self.clip)
        _check_range(0, 1, server_momentum=self.server_momentum)
        _check_files(self.files)


@dataclass(frozen=True)
class SiteScore:
    """One adapter's gain on a site's validation examples against the adapter the round started from."""

    gain: float
    standard_error: float


@dataclass(frozen=True)
class Scores(Record):
    """`scores/SITE.json`: what a hospital measured of all contributions; `gains` is by adapter digest."""

    FORMAT: ClassVar[str] = "scores"

    site: str
    round: int
    plan: str
    base_fingerprint: str
    parent: str
    examples_digest: str
    num_examples: int
    num_groups: int
    gains: dict[str, SiteScore]
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        for name in ("plan", "base_fingerprint", "parent", "examples_digest"):
            _check_digest(name, getattr(self, name))
        for name in self.gains:
            _check_digest("gains", name)
        if self.round < 1:
            raise ValueError(f"round must be at least 1, found {self.round}")
        _check_not_negative(num_examples=self.num_examples, num_groups=self.num_groups)


@dataclass(frozen=True)
class Tally:
    """On how many examples an adapter's loss is below the base's (a win), equal to it, or above it (a loss)."""

    wins: int
    ties: int
    losses: int

    def __post_init__(self) -> None:
        _check_not_negative(wins=self.wins, ties=self.ties, losses=self.losses)


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
    tally: Tally | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("loss", "perplexity", "standard_error", "num_examples", "num_groups", "num_tokens"):
            _check_not_negative(**{f"a score's {name}": getattr(self, name)})


@dataclass(frozen=True)
class Rate:
    """A score from 0 to 1 (above is better) with its 95 % interval, and its paired difference to the base's."""

    score: Interval
    against_base: Interval | None

    def __post_init__(self) -> None:
        _check_range(0, 1, **{"a rate": self.score.mean})


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
class Choices:
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
class Comparison(Record):
    """`reports/compare.json`: adapters measured on examples that nobody trained on or chose weights with.

    `scores` is by adapter and site (and "overall"); `columns` by column, value and adapter. `worst_sites` names
    for each adapter the site where it gains least on the base. `on_other_sites` is, by site, the global adapter's
    loss minus that of the site's own adapter on all other sites' examples. `recovered` is the share of the pooled
    adapter's gain on the base that the global one reaches. `site` is the hospital that measured, if it was one.
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
    choices: Choices | None = field(default=None, metadata=LATER)
    columns: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict, metadata=LATER)
    generated: Generated | None = field(default=None, metadata=LATER)
    num_skipped: int = field(default=0, metadata=LATER)
    num_truncated: int = field(default=0, metadata=LATER)
    on_other_sites: dict[str, Interval] = field(default_factory=dict, metadata=LATER)
    recovered: Interval | None = field(default=None, metadata=LATER)
    round: int | None = field(default=None, metadata=LATER)
    site: str | None = field(default=None, metadata=LATER)
    worst_sites: dict[str, str] = field(default_factory=dict, metadata=LATER)
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("plan", "base_fingerprint", "examples_digest"):
            _check_digest(name, getattr(self, name))
        for name, digest in self.adapters.items():
            if digest is not None:
                _check_digest(f"adapters.{name[:80]}", digest)
        for name in (*([self.site] if self.site is not None else []), *self.worst_sites.values(), *self.on_other_sites):
            check_site_name(name)


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
    adapter the site where it gains least on the base; `files` gives the digest of each comparison by its site.
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
            _check_digest(name, getattr(self, name))
        for name in (*self.sites, *self.worst_sites.values(), *self.files):
            check_site_name(name)


@dataclass(frozen=True)
class Pooled(Record):
    """`reports/pooled/pooled.json`: one adapter trained on all sites' examples together, as an upper bound.

    `key` is the digest of all that decides its training; `rounds` is the federation's number whose steps it has.
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
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("key", "plan", "base_fingerprint", "parent", "adapter", "examples_digest"):
            _check_digest(name, getattr(self, name))


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Chat(Record):
    """A conversation, written by /save and read by /load: the one record that holds text, and stays in the house."""

    FORMAT: ClassVar[str] = "chat"

    adapter: str | None
    base_fingerprint: str
    system: str
    turns: tuple[Turn, ...]
    run: Run = field(default_factory=dict)


def metric_line(event: str, **values: str | int | float | None) -> bytes:
    """One line of `metrics.jsonl`: numbers, enums and digests of one event."""
    body = {"format": "fedmed/metric", "version": 1, "event": event} | dict(sorted(values.items()))
    return (json.dumps(body, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The events of `metrics.jsonl`, and whether a torn last line was dropped.

    A damaged line anywhere else is an InputError.
    """
    lines = read_file(path, MAX_METRICS_BYTES).split(b"\n") if path.exists() else [b""]
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):
        event = parse_json(line, f"{path}:{number}")
        if not isinstance(event, dict) or event.get("format") != "fedmed/metric" or event.get("version") != 1:
            raise InputError(f"{path}:{number}: expected a fedmed/metric of version 1")
        try:
            decode(Run, event, "metric")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        events.append(event)
    return events, bool(lines[-1])
