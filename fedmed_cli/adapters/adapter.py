"""An adapter in memory, and the files that it is written to."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fedmed_cli.adapters.safetensors import serialize
from fedmed_cli.records.digests import sha256_bytes, sha256_json
from fedmed_cli.records.lora import pattern_of, rescaled, scaling, unlike
from fedmed_cli.records.plan import Plan

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
README_NAME = "README.md"
PREFIX = "base_model.model."

Factors = tuple[np.ndarray, np.ndarray]


class FactorsOfFile(dict[str, Factors]):
    """The factors of a file that is just what `serialize` makes of them, with its bytes and their SHA-256.

    Neither need be made again.
    """

    def __init__(self, factors: Mapping[str, Factors], data: bytes, digest: str) -> None:
        super().__init__(factors)
        self.data, self.digest = data, digest


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in memory. `factors[module]` is (A: (r, in), B: (out, r)), float32; it adds s·B·A.

    `r` and `alpha` are those of modules in general; `ranks` and `alphas` hold those of modules that have others.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str
    factors: Mapping[str, Factors]
    use_rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank(self, module: str) -> int:
        """The rank of one module's factors."""
        return self.ranks.get(module, self.r)

    def alpha_of(self, module: str) -> float:
        """The alpha of one module."""
        return self.alphas.get(module, self.alpha)

    def scale(self, module: str) -> float:
        """The scaling s of one module's product."""
        return scaling(self.alpha_of(module), self.rank(module), self.use_rslora)

    @property
    def max_rank(self) -> int:
        """The highest rank of any module."""
        return max(map(self.rank, self.factors))

    @property
    def rank_pattern(self) -> dict[str, int]:
        """PEFT's rank_pattern: the ranks that are not `r`."""
        return pattern_of({module: self.rank(module) for module in self.factors}, self.r)

    @property
    def alpha_pattern(self) -> dict[str, float]:
        """PEFT's alpha_pattern: the alphas that are not `alpha`."""
        return pattern_of({module: self.alpha_of(module) for module in self.factors}, self.alpha)

    @property
    def num_parameters(self) -> int:
        return sum(a.size + b.size for a, b in self.factors.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The canonical adapter_config.json, which plain PEFT reads."""
        patterns: dict[str, Any] = {
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": {name: _to_peft_number(alpha) for name, alpha in self.alpha_pattern.items()},
        }
        return {name: pattern for name, pattern in patterns.items() if pattern} | {
            "base_model_name_or_path": self.base_name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": _to_peft_number(self.alpha),
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.r,
            "target_modules": list(self.targets),
            "task_type": "CAUSAL_LM",
            "use_rslora": self.use_rslora,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical config and the tensors, whatever order or JSON form a file had."""
        return sha256_json({"config": self.config, "weights": self.weights_digest})

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of `weights_bytes`."""
        if isinstance(self.factors, FactorsOfFile):
            return self.factors.digest
        return sha256_bytes(self.weights_bytes)

    @cached_property
    def weights_bytes(self) -> bytes:
        """The adapter_model.safetensors file: float32, sorted by name."""
        if isinstance(self.factors, FactorsOfFile):
            return self.factors.data
        return serialize(
            {
                name: array
                for module, (a, b) in self.factors.items()
                for name, array in ((tensor_name(module, "A"), a), (tensor_name(module, "B"), b))
            }
        )


def _to_peft_number(alpha: float) -> float | int:
    """An alpha as PEFT's files have it: a whole number without a point."""
    return int(alpha) if alpha.is_integer() else alpha


def tensor_name(module: str, factor: str) -> str:
    """PEFT's name for factor "A" or "B" of a module."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def initial_factors(plan: Plan) -> dict[str, Factors]:
    """The plan's initial adapter: B = 0, A uniform in ±1/√in as in PEFT, from Philox, module by module.

    Rebuilt from the seed at every site, the same bytes everywhere: numpy guarantees the raw bit stream.
    """
    shapes = tuple((module, plan.rank(module), *shape) for module, shape in plan.modules.items())
    return dict(_draw_factors(plan.training.seed, shapes))


@functools.lru_cache(maxsize=2)
def _draw_factors(seed: int, shapes: tuple[tuple[str, int, int, int], ...]) -> dict[str, Factors]:
    generator = np.random.Philox(seed)
    factors = {}
    for module, r, size_out, size_in in shapes:
        raw = generator.random_raw(r * size_in)
        raw >>= np.uint64(40)  # 24 bits: exact in float32
        uniform = raw.astype(np.float64)
        uniform *= 2.0**-23
        uniform -= 1
        uniform /= math.sqrt(size_in)
        a = uniform.astype(np.float32).reshape(r, size_in)
        b = np.zeros((size_out, r), dtype=np.float32)
        a.flags.writeable = b.flags.writeable = False  # the arrays are shared
        factors[module] = (a, b)
    return factors


def plan_adapter(plan: Plan, factors: Mapping[str, Factors], r: int | None = None) -> Adapter:
    """An adapter as the plan implies it; `r` is the rank of modules in general (default: the plan's).

    Each module has the plan's scaling, whatever the rank of its factors.
    """
    lora = plan.lora
    r = r or lora.r
    alpha = rescaled(lora.alpha, lora.r, r, lora.use_rslora)
    ranks = {module: len(a) for module, (a, _) in factors.items()}
    alphas = {module: plan.alpha(module, rank) for module, rank in ranks.items()}
    return Adapter(
        r,
        alpha,
        tuple(sorted(lora.targets)),
        plan.base.name,
        dict(sorted(factors.items())),
        lora.use_rslora,
        unlike(ranks, r),
        unlike(alphas, alpha),
    )


def adapter_files(adapter: Adapter, readme: str) -> dict[str, bytes]:
    """The files of an adapter folder, but for its record."""
    return {
        CONFIG_NAME: (json.dumps(adapter.config, indent=2) + "\n").encode("utf-8"),
        WEIGHTS_NAME: adapter.weights_bytes,
        README_NAME: readme.encode("utf-8"),
    }


def file_digests(adapter: Adapter, files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each of `adapter_files`; the weights, of which it is known, are not hashed again."""
    return {name: adapter.weights_digest if name == WEIGHTS_NAME else sha256_bytes(files[name]) for name in files}
