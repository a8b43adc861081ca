"""`contribution.json`: what a site says about its adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedmed_cli.errors import InputError
from fedmed_cli.records.checks import (
    MAX_ROUND,
    check_at_most,
    check_digest,
    check_files,
    check_not_negative,
    check_range,
    check_site_name,
)
from fedmed_cli.records.codec import OMIT_IF_EMPTY, Record, encode
from fedmed_cli.records.measures import Loss, Run
from fedmed_cli.records.privacy import Privacy


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
    kept_step: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    privacy: Privacy | None = field(default=None, metadata=OMIT_IF_EMPTY)
    num_canaries: int = field(default=0, metadata=OMIT_IF_EMPTY)
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        check_range(1, MAX_ROUND, round=self.round)
        for name in ("plan", "sites", "base_fingerprint", "parent", "adapter"):
            check_digest(name, getattr(self, name))
        check_files(self.files)
        counts = ("adapter_bytes", "base_bytes", "num_examples", "num_tokens", "num_truncated", "num_skipped")
        trained = ("max_steps", "num_trained_examples", "num_trained_tokens", "per_device_train_batch_size")
        check_not_negative(**{name: getattr(self, name) for name in (*counts, *trained, "update_norm")})
        check_not_negative(**{f"losses[{i}]": loss for i, loss in enumerate(self.losses)})
        for part in ("before", "after"):
            measured = getattr(self, f"validation_{part}")
            check_not_negative(**{f"validation_{part}.mean": measured.mean if measured else 0.0})
        check_range(0, 1_000_000, num_canaries=self.num_canaries)
        check_range(1, 1_000_000, gradient_accumulation_steps=self.gradient_accumulation_steps)
        check_range(1, max(1, len(self.losses)), kept_step=self.kept_step)
        if len(self.losses) > self.max_steps:
            raise ValueError(f"losses must be at most max_steps ({self.max_steps}) many, found {len(self.losses)}")
        if self.privacy is not None:
            self._check_privacy(self.privacy)
        else:
            most = len(self.losses) * self.per_device_train_batch_size * self.gradient_accumulation_steps
            check_at_most(most, f"{len(self.losses)} steps", num_trained_examples=self.num_trained_examples)
        check_at_most(self.num_examples, "num_examples", num_truncated=self.num_truncated)

    def _check_privacy(self, privacy: Privacy) -> None:
        """ValueError where the record tells more than the guarantee covers, or contradicts it."""
        if self.losses or self.kept_step is not None:
            raise ValueError("with privacy, losses must be empty and kept_step omitted: neither is noised")
        if privacy.mechanism.steps != self.max_steps:
            raise ValueError(f"privacy.mechanism.steps must be max_steps ({self.max_steps})")
        expected = privacy.mechanism.sampling_rate * self.max_steps
        for name in ("examples", "tokens"):
            most = math.ceil(expected * getattr(self, f"num_{name}"))
            check_at_most(
                most, "what its sampling expects", **{f"num_trained_{name}": getattr(self, f"num_trained_{name}")}
            )

    @property
    def num_steps(self) -> int:
        """The steps that were trained; with privacy their losses are not told."""
        return self.max_steps if self.privacy is not None else len(self.losses)

    def check_tokens(self, max_length: int) -> None:
        """ValueError where more answer tokens are claimed than examples of `max_length` tokens can hold."""
        for tokens, examples in (("num_tokens", "num_examples"), ("num_trained_tokens", "num_trained_examples")):
            most = getattr(self, examples) * max_length
            check_at_most(most, f"{examples} x max_length", **{tokens: getattr(self, tokens)})

    @property
    def reduction(self) -> float:
        """The share of the base model's bytes that need not travel, from 0 to 1."""
        return 1 - self.adapter_bytes / self.base_bytes if self.base_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        body = encode(self) | {"reduction": round(self.reduction, 6)}
        if self.gradient_accumulation_steps == 1:
            del body["gradient_accumulation_steps"]
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
