"""What an adapter's own files say about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.folder import AdapterFolder
from fedmed_cli.adapters.gate import read_from_anyone
from fedmed_cli.adapters.low_rank import decompose
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Plan


@dataclass(frozen=True)
class ModuleFacts:
    """One module: its shape, the singular values of s·B·A, their norm and effective rank."""

    size_out: int
    size_in: int
    norm: float
    effective_rank: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as `inspect-adapter` shows it."""

    folder: AdapterFolder = field(repr=False)
    norm: float
    modules: dict[str, ModuleFacts]
    base_bytes: int | None

    @property
    def adapter(self) -> Adapter:
        return self.folder.adapter

    @property
    def reduction(self) -> float | None:
        return 1 - self.folder.num_bytes / self.base_bytes if self.base_bytes else None

    @property
    def effective_rank(self) -> float:
        """The mean over modules that are not zero."""
        ranks = [facts.effective_rank for facts in self.modules.values() if facts.norm > 0]
        return float(np.mean(ranks)) if ranks else 0.0

    def to_dict(self) -> dict[str, Any]:
        adapter, folder, record = self.adapter, self.folder, self.folder.record
        return {
            "path": str(folder.path),
            "digest": adapter.digest,
            "r": adapter.r,
            "alpha": adapter.alpha,
            "use_rslora": adapter.use_rslora,
            "rank_pattern": adapter.rank_pattern,
            "alpha_pattern": adapter.alpha_pattern,
            "targets": list(adapter.targets),
            "base": adapter.base_name,
            "num_parameters": adapter.num_parameters,
            "num_bytes": folder.num_bytes,
            "base_bytes": self.base_bytes,
            "reduction": self.reduction,
            "norm": self.norm,
            "effective_rank": self.effective_rank,
            "signer": folder.signer,
            "contribution": record.to_dict() if isinstance(record, Contribution) else None,
            "aggregate": record.to_dict() if isinstance(record, Aggregate) else None,
            "personal": record.to_dict() if isinstance(record, Personal) else None,
            "modules": {
                name: {
                    "shape": [facts.size_out, facts.size_in],
                    "norm": facts.norm,
                    "effective_rank": facts.effective_rank,
                    "singular_values": list(facts.singular_values),
                }
                for name, facts in self.modules.items()
            },
        }


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli, 2007); 0 for a zero matrix."""
    total = singular_values.sum()
    if total <= 0:
        return 0.0
    share = singular_values[singular_values > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def inspect(path: Path, plan: Plan | None) -> AdapterFacts:
    """Read an adapter through the gate and describe it; with a plan it must fit the plan."""
    folder = read_from_anyone(path, plan)
    adapter, record = folder.adapter, folder.record
    modules = {}
    for module, (a, b) in adapter.factors.items():
        values = decompose((b.astype(np.float64) * adapter.scale(module), a.astype(np.float64)))[1]
        norm = float(np.sqrt(np.sum(values**2)))
        modules[module] = ModuleFacts(
            b.shape[0], a.shape[1], norm, effective_rank(values), tuple(float(v) for v in values)
        )
    base_bytes = plan.base.num_bytes if plan else record.base_bytes if isinstance(record, Contribution) else None
    norm = math.sqrt(math.fsum(facts.norm**2 for facts in modules.values()))
    return AdapterFacts(folder, norm, modules, base_bytes)
