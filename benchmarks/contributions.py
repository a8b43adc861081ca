"""Random contributions as after a training, for benchmarks of everything that needs no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedmed_cli.adapters import card, gate
from fedmed_cli.adapters.adapter import Adapter, adapter_files, initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import update_norm
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.plan import Plan


def random_adapter(plan: Plan, seed: int) -> Adapter:
    """As after training: A near the plan's initial one, B small."""
    rng = np.random.default_rng(seed)
    factors = {
        module: (
            (a + rng.normal(0, 1e-3, a.shape)).astype(np.float32),
            rng.normal(0, 1e-3, b.shape).astype(np.float32),
        )
        for module, (a, b) in initial_factors(plan).items()
    }
    return plan_adapter(plan, factors)


def write_contribution(plan: Plan, site: str, seed: int, home: Path) -> None:
    initial = plan_adapter(plan, initial_factors(plan))
    adapter = random_adapter(plan, seed)
    files = adapter_files(adapter, card.card(plan.base, adapter, "Random", "Random numbers."))
    record = Contribution(
        site=site, round=1, plan=plan.digest, sites=plan.sites.digest, base_fingerprint=plan.base.fingerprint,
        parent=initial.digest, adapter=adapter.digest, adapter_bytes=sum(map(len, files.values())),
        base_bytes=plan.base.num_bytes, num_examples=1000, num_tokens=100_000, num_truncated=0, num_skipped=0,
        max_steps=100, num_trained_examples=200, num_trained_tokens=20_000, per_device_train_batch_size=2,
        losses=(1.0,) * 100, validation_before=None, validation_after=None, update_norm=update_norm(initial, adapter),
        files={file: sha256_bytes(data) for file, data in files.items()},
    )  # fmt: skip
    home.mkdir(parents=True)
    for file, data in (files | {gate.CONTRIBUTION_NAME: record.to_bytes()}).items():
        (home / file).write_bytes(data)
