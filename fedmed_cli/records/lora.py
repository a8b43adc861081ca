"""The LoRA configuration: ranks, alphas and target modules, of all modules or of some, named as PEFT names them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fedmed_cli.records.codec import OMIT_IF_EMPTY

MAX_RANK = 65536
MIN_ALPHA = 1e-6  # so that dividing by a scaling stays finite
MAX_ALPHA = 65536
MAX_DESCRIBED = 8
MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.[A-Za-z0-9_]{1,100}){0,20}")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Lora:
    """What every adapter of the federation has: rank, alpha and target modules.

    `rank_pattern` and `alpha_pattern` give some modules another rank or alpha. They name a module as `targets`
    do: by its whole name, or by its end after a dot.
    """

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    use_rslora: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)

    def __post_init__(self) -> None:
        for where, rank in {"r": self.r, **_named("rank_pattern", self.rank_pattern)}.items():
            if not 1 <= rank <= MAX_RANK:
                raise ValueError(f"lora.{where} must be from 1 to {MAX_RANK}, found {rank}")
        for where, alpha in {"alpha": self.alpha, **_named("alpha_pattern", self.alpha_pattern)}.items():
            if not MIN_ALPHA <= alpha <= MAX_ALPHA:
                raise ValueError(f"lora.{where} must be from {MIN_ALPHA:g} to {MAX_ALPHA}, found {alpha}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("lora.targets must name at least one module, each once")
        for what in ("targets", "rank_pattern", "alpha_pattern"):
            for name in getattr(self, what):
                if not MODULE_NAME.fullmatch(name):
                    raise ValueError(f"lora.{what}: {name[:80]!r} is not a module name")


def scaling(alpha: float, r: int, use_rslora: bool) -> float:
    """s = alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski, arXiv 2312.03732): an adapter adds s·B·A."""
    return alpha / math.sqrt(r) if use_rslora else alpha / r


def rescaled(alpha: float, r: int, new_r: int, use_rslora: bool) -> float:
    """The alpha that gives rank `new_r` the scaling that `alpha` gives rank `r`."""
    if new_r == r:
        return alpha
    return alpha * math.sqrt(new_r / r) if use_rslora else alpha / r * new_r


class Names:
    """Names of modules, each meaning those whose whole name or end after a dot it is: PEFT's rule for lists."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._lengths = sorted({name.count(".") + 1 for name in names})

    def meaning(self, module: str) -> list[str]:
        """Those of the names that mean the module, the shortest first."""
        parts = module.split(".")
        ends = (".".join(parts[-length:]) for length in self._lengths if length <= len(parts))
        return [end for end in ends if end in self._names]


def resolve(pattern: Mapping[str, Number], modules: Collection[str]) -> dict[str, Number]:
    """The value that a pattern gives to each module that one of its names means.

    ValueError where a name means no module, or two mean the same, of which PEFT would take either.
    """
    if not pattern:
        return {}
    names, result, used = Names(pattern), {}, set()
    for module in modules:
        found = names.meaning(module)
        if len(found) > 1:
            raise ValueError(f"{found[0][:80]!r} and {found[1][:80]!r} both mean {module[:80]}")
        for name in found:
            result[module] = pattern[name]
            used.add(name)
    for name in pattern:
        if name not in used:
            raise ValueError(f"{name[:80]!r} means no target module")
    return result


def unlike(values: Mapping[str, Number], default: Number) -> dict[str, Number]:
    """The values that are not the default."""
    return {module: value for module, value in values.items() if value != default}


def pattern_of(values: Mapping[str, Number], default: Number) -> dict[str, Number]:
    """The pattern that gives each module its value: by the last part of the name where that is enough."""
    ends: defaultdict[str, set[Number]] = defaultdict(set)
    for module, value in values.items():
        ends[module.rpartition(".")[2]].add(value)
    result = {}
    for module, value in unlike(values, default).items():
        end = module.rpartition(".")[2]
        result[end if len(ends[end]) == 1 else module] = value
    return dict(sorted(result.items()))


class Configured(Protocol):
    """A Lora, or an adapter."""

    @property
    def r(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def use_rslora(self) -> bool: ...
    @property
    def rank_pattern(self) -> dict[str, int]: ...
    @property
    def alpha_pattern(self) -> dict[str, float]: ...


def described(lora: Configured) -> str:
    """ "r = 8, alpha = 16, rsLoRA, but r = 4 on down_proj", for people; the targets are left to the caller."""
    text = f"r = {lora.r}, alpha = {lora.alpha:g}" + (", rsLoRA" if lora.use_rslora else "")
    others = [f"r = {rank} on {name}" for name, rank in lora.rank_pattern.items()]
    others += [f"alpha = {own:g} on {name}" for name, own in lora.alpha_pattern.items()]
    if others:
        text += f", but {', '.join(others[:MAX_DESCRIBED])}"
        text += f" and {len(others) - MAX_DESCRIBED} more" if len(others) > MAX_DESCRIBED else ""
    return text


def _named(what: str, pattern: Mapping[str, Number]) -> dict[str, Number]:
    return {f"{what}.{name[:80]}": value for name, value in pattern.items()}
