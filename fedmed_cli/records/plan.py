"""`federation.toml`: the plan that every site agrees on."""

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
from fedmed_cli.errors import InputError
from fedmed_cli.records.checks import check_digest, check_not_negative, check_range, check_site_names
from fedmed_cli.records.codec import (
    OMIT_IF_EMPTY,
    check_header,
    control_character,
    decode_fields,
    encode,
    read_file,
    reason_of,
)
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.lora import Lora, Names, rescaled, resolve, scaling
from fedmed_cli.records.measures import COORDINATOR

MAX_MODULES = 20_000
MAX_PARAMETERS = 2**31
MAX_PLAN_BYTES = 200_000
MAX_LAYERS = 1024
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.([A-Za-z0-9_]{1,100}|\*)){0,20}")
_OUTSIDE = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|.*[/\\]\.\.([/\\]|$)")  # a path that leaves the folder where fedmed runs
# An Ed25519 key takes 51 bytes in OpenSSH's form, which are 68 characters of base64; all begin alike.
PUBLIC_KEY = re.compile(r"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}")


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
        if _OUTSIDE.match(self.name):
            raise ValueError("base.name must be a model's name or a hub id such as owner/name, not a path")
        if len(self.revision) > 100 or not self.revision.isprintable():
            raise ValueError("base.revision must be at most 100 printable characters")
        check_digest("base.fingerprint", self.fingerprint)
        check_not_negative(**{"base.num_bytes": self.num_bytes})
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
        check_not_negative(
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
class PrivacyRules:
    """What every contribution must keep, where the plan asks for it.

    `max_epsilon` is of all trainings on a contribution's records together; `max_audit_auc` is the most that the
    hospital's own audit may have found before `pack` hands the contribution over.
    """

    max_epsilon: float | None = None
    max_audit_auc: float | None = None

    def __post_init__(self) -> None:
        check_range(1e-3, 1000, **{"privacy.max_epsilon": self.max_epsilon})
        check_range(0.5, 1, **{"privacy.max_audit_auc": self.max_audit_auc})


@dataclass(frozen=True)
class Sites:
    """Who takes part, and how many contributions a round needs at least.

    `ranks` names the sites that train a lower rank than the plan's.
    """

    names: tuple[str, ...]
    min_sites: int
    ranks: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)

    def __post_init__(self) -> None:
        check_site_names(self.names)
        self._check_keys()
        if not self.names:
            raise ValueError("sites.names names no site")
        if not 1 <= self.min_sites <= len(self.names):
            raise ValueError(f"sites.min_sites must be from 1 to {len(self.names)}, found {self.min_sites}")
        names = set(self.names)
        for name, rank in self.ranks.items():
            if name not in names:
                raise ValueError(f"sites.ranks names {name[:80]!r}, which is not a site")
            if rank < 1:
                raise ValueError(f"sites.ranks.{name} must be at least 1, found {rank}")

    def _check_keys(self) -> None:
        """ValueError unless every key is one line of Ed25519 for somebody who takes part, and nobody else's."""
        owners: dict[str, str] = {}
        names = {COORDINATOR, *self.names}
        for name, key in self.keys.items():
            if name not in names:
                raise ValueError(f"sites.keys: {name[:80]!r} is neither a site nor {COORDINATOR}")
            if not PUBLIC_KEY.fullmatch(key):
                raise ValueError(f"sites.keys.{name} must be 'ssh-ed25519 AAAA…' without a comment")
            if key in owners:
                raise ValueError(f"sites.keys: {owners[key]} and {name} have the same key")
            owners[key] = name

    @property
    def digest(self) -> str:
        return sha256_json(encode(self))


_PLAN_COMMENTS = {
    "base": "The base model. Its fingerprint (weights, config, tokenizer, template) must match at every site;\n"
    "# `linear` gives the shape of each linear module: (out, in), and the number of layers where the name has a *.",
    "lora": "What every site trains: LoRA of rank r on the target modules, with scaling alpha / r, or alpha / sqrt(r)\n"
    "# with use_rslora. rank_pattern and alpha_pattern hold what some modules have instead.",
    "prompt": "Plain texts; the base model's own chat template wraps them.",
    "training": "Agreed by all sites. Device and batch size are free; max_steps is the default of a round.",
    "privacy": "What must hold of every contribution: the privacy of trainings on its records together (max_epsilon),\n"
    "# and what its audit found (max_audit_auc).",
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
    privacy: PrivacyRules = PrivacyRules()  # frozen

    FORMAT: ClassVar[str] = "plan"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        targets = Names(self.lora.targets)
        used = {name for module in self.base.modules for name in targets.meaning(module)}
        for target in self.lora.targets:
            if target not in used:
                leaves = sorted({name.rsplit(".", 1)[-1][:40] for name in self.base.modules})
                known = ", ".join(leaves[:20]) + (", …" if len(leaves) > 20 else "")
                raise ValueError(f"lora.targets: the base has no linear module {target[:80]!r} (it has {known})")
        if self.lora.rank_pattern or self.lora.alpha_pattern:
            self._check_patterns()
        for module, shape in self.modules.items():
            if self.rank(module) > min(shape):
                what = "lora.r" if self.rank(module) == self.lora.r else "lora.rank_pattern"
                raise ValueError(
                    f"{what} is {self.rank(module)}, but target module {module} has a side of {min(shape)}"
                )
        for name, rank in self.sites.ranks.items():
            if rank > self.max_rank:
                raise ValueError(f"sites.ranks.{name} is {rank}, above the plan's rank {self.max_rank}")
        if self.num_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"an adapter would have {self.num_parameters:,} parameters, expected at most {MAX_PARAMETERS:,}"
            )

    @cached_property
    def modules(self) -> dict[str, tuple[int, int]]:
        """The target modules, sorted by name: (out, in)."""
        targets = Names(self.lora.targets)
        return {name: shape for name, shape in self.base.modules.items() if targets.meaning(name)}

    def _check_patterns(self) -> None:
        """ValueError unless the patterns, and whole names as an adapter's own may have, each mean what they should."""
        for what, pattern in (
            ("rank_pattern", self.lora.rank_pattern),
            ("alpha_pattern", self.lora.alpha_pattern),
            ("rank_pattern and alpha_pattern cannot be used with these modules", dict.fromkeys(self.modules, 0)),
        ):
            try:
                resolve(pattern, self.modules)
            except ValueError as error:
                raise ValueError(f"lora.{what}: {error}") from None

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict.fromkeys(self.modules, self.lora.r) | resolve(self.lora.rank_pattern, self.modules)

    @cached_property
    def _alphas(self) -> dict[str, float]:
        return dict.fromkeys(self.modules, self.lora.alpha) | resolve(self.lora.alpha_pattern, self.modules)

    @cached_property
    def max_rank(self) -> int:
        """The highest rank of any module."""
        return max(self._ranks.values())

    @cached_property
    def num_parameters(self) -> int:
        """How many numbers an adapter holds."""
        return sum(self._ranks[module] * sum(shape) for module, shape in self.modules.items())

    def rank(self, module: str) -> int:
        """The rank of a target module's factors."""
        return self._ranks[module]

    def scale(self, module: str) -> float:
        """The scaling s of a target module: an adapter adds s·B·A to its weight."""
        return scaling(self._alphas[module], self._ranks[module], self.lora.use_rslora)

    def alpha(self, module: str, rank: int) -> float:
        """The alpha of a target module that has its scaling where its factors have this rank."""
        return rescaled(self._alphas[module], self._ranks[module], rank, self.lora.use_rslora)

    def common(self, limit: int) -> tuple[int, float]:
        """Rank and alpha of modules in general, where no rank may be above `limit`."""
        r = self.lora.r if limit >= self.max_rank else min(limit, self.lora.r)
        return r, rescaled(self.lora.alpha, self.lora.r, r, self.lora.use_rslora)

    def rank_of(self, site: str) -> int:
        """The rank above which a site trains nothing: the plan's highest, or what the plan gives that site."""
        return self.sites.ranks.get(site, self.max_rank)

    @cached_property
    def digest(self) -> str:
        """Digest of what the sites agree on: base, lora, prompt, training and privacy (not sites)."""
        parts = {name: encode(getattr(self, name)) for name in ("base", "lora", "prompt")}
        if self.privacy != PrivacyRules():
            parts["privacy"] = {name: value for name, value in encode(self.privacy).items() if value is not None}
        return sha256_json(parts | {"training": self.training.agreed()})

    def to_bytes(self) -> bytes:
        lines = [
            "# The plan of a fedmed federation. Send this file to every site; nobody edits it afterwards.",
            f'format = "fedmed/{self.FORMAT}"',
            f"version = {self.VERSION}",
            f"fedmed_version = {_toml(__version__)}",
        ]
        for name, comment in _PLAN_COMMENTS.items():
            if name == "privacy" and self.privacy == PrivacyRules():
                continue
            lines += ["", f"# {comment}", f"[{name}]"]
            values = encode(getattr(self, name))
            tables = {key: value for key, value in values.items() if isinstance(value, dict)}
            lines += [
                f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables and value is not None
            ]
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
            raise InputError(f"{name}: {reason_of(error)}") from None


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    # A JSON string, integer or list of those is a valid TOML value, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
