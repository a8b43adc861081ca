"""The gate that every adapter passes before fedmed uses it, and the writer of adapter folders.

Each file is read once into memory, hashed, and that same buffer is parsed: nothing can change between the
check and the use. Nothing is ever unpickled, and a foreign file is never memory-mapped.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmed_cli.codec import parse_json, read_file
from fedmed_cli.digests import canonical_json, sha256_bytes, sha256_json
from fedmed_cli.errors import CombineError, InputError, TrustError
from fedmed_cli.records import Aggregate, Base, Contribution, Plan
from fedmed_cli.safetensors_io import header_bytes, parse_header, serialize, to_float32

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
README_NAME = "README.md"
CONTRIBUTION_NAME = "contribution.json"
AGGREGATE_NAME = "aggregate.json"
SIGNATURES = (f"{CONTRIBUTION_NAME}.sig", f"{AGGREGATE_NAME}.sig")
ALLOWED_NAMES = frozenset({CONFIG_NAME, WEIGHTS_NAME, README_NAME, CONTRIBUTION_NAME, AGGREGATE_NAME, *SIGNATURES})
PREFIX = "base_model.model."
MAX_WEIGHTS_BYTES = 8_000_000_000
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# What an adapter_config.json may say. Keys that are not here may only be null, false or empty; `None` as a
# value means that the key is checked below.
_CONFIG_KEYS: dict[str, tuple[Any, ...] | None] = {
    "base_model_name_or_path": None,
    "r": None,
    "lora_alpha": None,
    "target_modules": None,
    "lora_dropout": None,
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "inference_mode": (True, False),
    "init_lora_weights": (True, "gaussian"),
    "fan_in_fan_out": (False,),
    "use_rslora": (False, True),
    "use_dora": (False, None),
    "peft_version": None,
    "revision": None,
    "auto_mapping": None,
    "ensure_weight_tying": (False, None),
    "megatron_core": ("megatron.core", None),
    "qalora_group_size": (16, None),
    "runtime_config": None,
}
_INFORMATION_KEYS = frozenset({"peft_version", "revision", "auto_mapping", "lora_dropout", "runtime_config"})

Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in memory. `factors[module]` is (A: (r, in), B: (out, r)), float32; it adds scaling·B·A."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str
    factors: Mapping[str, Factors]
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        """s = alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski, arXiv 2312.03732)."""
        return self.alpha / math.sqrt(self.r) if self.use_rslora else self.alpha / self.r

    def rank(self, module: str) -> int:
        """The rank of one module's factors."""
        return self.r

    def scale(self, module: str) -> float:
        """The scaling of one module's product."""
        return self.scaling

    @property
    def num_parameters(self) -> int:
        return sum(a.size + b.size for a, b in self.factors.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The canonical adapter_config.json, which plain PEFT reads."""
        return {
            "base_model_name_or_path": self.base_name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha,
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
        return sha256_bytes(self.weights_bytes)

    @cached_property
    def weights_bytes(self) -> bytes:
        """The adapter_model.safetensors file: float32, sorted by name."""
        return serialize(
            {
                name: array
                for module, (a, b) in self.factors.items()
                for name, array in ((tensor_name(module, "A"), a), (tensor_name(module, "B"), b))
            }
        )


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed the gate, with the bytes of its files as they were read and the records among them."""

    path: Path
    adapter: Adapter
    files: dict[str, bytes] = field(repr=False)
    contribution: Contribution | None = None
    aggregate: Aggregate | None = None

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files.values()))


def tensor_name(module: str, factor: str) -> str:
    """PEFT's name for factor "A" or "B" of a module."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


# --- the gate ---------------------------------------------------------------------------------------


def read_folder(path: Path, plan: Plan | None = None) -> AdapterFolder:
    """Read an adapter folder through the gate. With `plan`, it must be exactly the adapter the plan implies.

    Raises InputError (exit code 3) for what is missing or corrupt, CombineError (4) for an adapter of
    another kind, rank, base or plan, TrustError (7) where a digest does not hold.
    """
    files = _read_files(path)
    digests = {name: sha256_bytes(data) for name, data in files.items()}
    config = parse_json(files[CONFIG_NAME], str(path / CONFIG_NAME))
    adapter = _parse_adapter(config, files[WEIGHTS_NAME], digests[WEIGHTS_NAME], path)
    contribution = aggregate = None
    if CONTRIBUTION_NAME in files:
        contribution = Contribution.from_bytes(files[CONTRIBUTION_NAME], str(path / CONTRIBUTION_NAME))
        _check_digests(path, digests, contribution.files, contribution.adapter, adapter, CONTRIBUTION_NAME)
    if AGGREGATE_NAME in files:
        aggregate = Aggregate.from_bytes(files[AGGREGATE_NAME], str(path / AGGREGATE_NAME))
        _check_digests(path, digests, aggregate.files, aggregate.adapter, adapter, AGGREGATE_NAME)
    if plan is not None:
        record = contribution or aggregate
        check_against_plan(path, adapter, plan, plan.rank_of(contribution.site) if contribution else plan.lora.r)
        if record is not None:
            check_record(path, record.plan, record.base_fingerprint, plan)
    return AdapterFolder(path, adapter, files, contribution, aggregate)


def _read_files(path: Path) -> dict[str, bytes]:
    if path.is_symlink():
        raise InputError(f"{path}: is a link, expected an adapter folder")
    if not path.is_dir():
        kind = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{path}: {kind}, expected an adapter folder")
    entries = sorted(path.iterdir())
    for entry in entries:
        shown = ascii(entry.name)[:80]
        if entry.suffix.lower() in _PICKLES:
            raise InputError(
                f"{path}: holds {shown}; files that can carry code are never opened",
                hint="save the adapter as safetensors, in a folder without that file",
            )
        if entry.name not in ALLOWED_NAMES:
            raise InputError(
                f"{path}: holds {shown}, which does not belong in an adapter folder",
                hint=f"an adapter folder holds only {', '.join(sorted(ALLOWED_NAMES))}",
            )
        if entry.is_symlink() or not entry.is_file():
            raise InputError(f"{path}: {entry.name} is not a plain file")
    names = {entry.name for entry in entries}
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if name not in names:
            raise InputError(f"{path}: has no {name}")
    limits = {WEIGHTS_NAME: MAX_WEIGHTS_BYTES}
    return {entry.name: read_file(entry, limits.get(entry.name, 1_000_000)) for entry in entries}


def _parse_adapter(config: Any, weights: bytes, weights_digest: str, path: Path) -> Adapter:
    r, alpha, targets, base_name, use_rslora = _check_config(config, str(path / CONFIG_NAME))
    name = str(path / WEIGHTS_NAME)
    buffer = memoryview(weights)
    tensors, start = parse_header(buffer, len(weights), name)
    factors: dict[str, dict[str, np.ndarray]] = {}
    for key, info in tensors.items():
        module, _, end = key.removeprefix(PREFIX).rpartition(".lora_")
        factor = end.removesuffix(".weight")
        if not key.startswith(PREFIX) or not module or factor not in ("A", "B") or end == factor:
            raise CombineError(f"{name}: tensor {key!r} is no LoRA factor")
        if not any(module == target or module.endswith("." + target) for target in targets):
            raise CombineError(f"{name}: tensor {key!r} is of a module that target_modules does not name")
        if info.dtype not in ("F32", "F16", "BF16"):
            raise CombineError(f"{name}: tensor {key!r} has dtype {info.dtype}, expected F32, F16 or BF16")
        if len(info.shape) != 2 or info.shape[0 if factor == "A" else 1] != r:
            raise CombineError(
                f"{name}: tensor {key!r} has shape {list(info.shape)}, expected rank {r} "
                f"({'(r, in)' if factor == 'A' else '(out, r)'})"
            )
        array = to_float32(buffer[start + info.start : start + info.end], info)
        # A sum is finite only where every value is (or where it overflows, which min and max settle).
        if not np.isfinite(array.sum(dtype=np.float64)):
            bad = int(array.size - np.isfinite(array).sum())
            raise InputError(f"{name}: tensor {key!r} holds {bad} values that are NaN or infinite")
        factors.setdefault(module, {})[factor] = array
    if not factors:
        raise InputError(f"{name}: holds no tensor")
    for module, pair in factors.items():
        if len(pair) != 2:
            missing = "B" if "A" in pair else "A"
            raise InputError(f"{name}: tensor {tensor_name(module, missing)!r} is missing")
    pairs = {module: (factors[module]["A"], factors[module]["B"]) for module in sorted(factors)}
    adapter = Adapter(r, alpha, targets, base_name, pairs, use_rslora)
    if weights[:start] == header_bytes(tensors):
        # The file is as fedmed would write it: what follows from it need not be computed again.
        adapter.__dict__.update(weights_bytes=weights, weights_digest=weights_digest)
    return adapter


def _check_config(config: Any, name: str) -> tuple[int, float, tuple[str, ...], str, bool]:
    if not isinstance(config, dict):
        raise InputError(f"{name}: expected an object, found {type(config).__name__}")
    for key, value in config.items():
        shown = ascii(key)[1:-1][:60]
        if key not in _CONFIG_KEYS:
            if value is not None and value is not False and value != [] and value != {}:
                raise CombineError(f"{name}: {shown} is set; fedmed combines plain LoRA adapters only")
        elif (allowed := _CONFIG_KEYS[key]) is not None and not any(value is x or value == x for x in allowed):
            raise CombineError(f"{name}: {shown} must be {allowed[0]!r}, found {ascii(value)[:60]}")
        elif key in _INFORMATION_KEYS and isinstance(value, dict | list) and len(canonical_json(value)) > 2000:
            raise CombineError(f"{name}: {shown} is larger than any known use")
    for key in ("peft_type", "r", "lora_alpha", "target_modules"):
        if key not in config:
            raise InputError(f"{name}: {key} is missing")
    r, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    if type(r) is not int or not 1 <= r <= 1024:
        raise CombineError(f"{name}: r must be a whole number from 1 to 1024, found {ascii(r)[:40]}")
    if type(alpha) not in (int, float) or not 0 < alpha <= 65536:
        raise CombineError(f"{name}: lora_alpha must be above 0 and at most 65536, found {ascii(alpha)[:40]}")
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(target, str) and target.isascii() and target.isprintable() for target in targets)
    ):
        raise CombineError(f"{name}: target_modules must be a plain list of names, found {type(targets).__name__}")
    base_name = config.get("base_model_name_or_path") or ""
    if not isinstance(base_name, str) or len(base_name) > 1000 or not base_name.isprintable():
        raise CombineError(f"{name}: base_model_name_or_path is unusable")
    return r, float(alpha), tuple(sorted(targets)), base_name, config.get("use_rslora") is True


def _check_digests(
    path: Path, found: Mapping[str, str], stated: Mapping[str, str], digest: str, adapter: Adapter, record: str
) -> None:
    wanted = {name for name in found if name not in (CONTRIBUTION_NAME, AGGREGATE_NAME, *SIGNATURES)}
    for name in sorted(wanted | set(stated)):
        shown = ascii(name)[1:-1][:80]
        if name not in found:
            raise TrustError(f"{path}: {record} names {shown}, which is missing")
        if name not in stated:
            raise TrustError(f"{path}: {record} does not name {shown}")
        if found[name] != stated[name]:
            raise TrustError(
                f"{path / name}: {record} says sha256 {stated[name][:12]}…, found {found[name][:12]}…",
                hint="the folder was damaged or changed on its way; ask for it again",
            )
    if digest != adapter.digest:
        raise TrustError(f"{path}: {record} says adapter {digest[:12]}…, found {adapter.digest[:12]}…")


def check_against_plan(path: Path, adapter: Adapter, plan: Plan, r: int) -> None:
    """CombineError unless the rank is `r` and alpha / r, targets, base name and every shape are the plan's."""
    expected: list[tuple[str, object, object]] = [
        ("rank r", r, adapter.r),
        ("lora_alpha", plan.lora.scaling * r, adapter.alpha),
        ("target_modules", sorted(plan.lora.targets), list(adapter.targets)),
        ("base_model_name_or_path", plan.base.name, adapter.base_name),
        ("use_rslora", False, adapter.use_rslora),
    ]
    for what, wanted, found in expected:
        if wanted != found:
            raise CombineError(f"{path}: the plan expects {what} {wanted}, found {ascii(found)[:200]}")
    for module in plan.modules:
        if module not in adapter.factors:
            raise InputError(f"{path / WEIGHTS_NAME}: tensor {tensor_name(module, 'A')!r} is missing")
    for module, (a, b) in adapter.factors.items():
        if module not in plan.modules:
            raise CombineError(f"{path / WEIGHTS_NAME}: the plan has no module {module!r}")
        size_out, size_in = plan.modules[module]
        if a.shape[1] != size_in or b.shape[0] != size_out:
            raise CombineError(
                f"{path / WEIGHTS_NAME}: the plan expects {module} to be {size_out} x {size_in}, "
                f"found {b.shape[0]} x {a.shape[1]}"
            )


def check_record(path: Path, plan_digest: str, base_fingerprint: str, plan: Plan) -> None:
    """CombineError unless a record names this plan and this base model."""
    if base_fingerprint != plan.base.fingerprint:
        raise CombineError(
            f"{path}: was trained on another base model: the plan expects fingerprint "
            f"{plan.base.fingerprint[:12]}…, found {base_fingerprint[:12]}…"
        )
    if plan_digest != plan.digest:
        raise CombineError(f"{path}: is of another plan: expected {plan.digest[:12]}…, found {plan_digest[:12]}…")


def read_contribution(path: Path, plan: Plan, round_number: int, parent: str) -> AdapterFolder:
    """Read a contribution to the given round through the gate; it must start from adapter digest `parent`."""
    folder = read_folder(path, plan)
    record = folder.contribution
    if record is None:
        raise InputError(
            f"{path}: has no {CONTRIBUTION_NAME}", hint="send the whole folder that 'fedmed train-local' wrote"
        )
    if folder.aggregate is not None:
        raise CombineError(f"{path}: is a global adapter, not a site's contribution")
    if record.site not in plan.sites.names:
        raise CombineError(f"{path}: site {record.site} is not in the plan ({', '.join(plan.sites.names)})")
    if record.round != round_number:
        done = f"; round {record.round} is already aggregated" if record.round < round_number else ""
        raise TrustError(
            f"{path}: expected a contribution to round {round_number}, found one to round {record.round}{done}",
            hint=f"train again for round {round_number}" if done else "aggregate the rounds before it first",
        )
    if record.parent != parent:
        raise TrustError(
            f"{path}: expected an adapter trained from {parent[:12]}… (the global adapter before round "
            f"{round_number}), found {record.parent[:12]}…",
            hint="send this site the newest global adapter and train again",
        )
    return folder


def read_global(path: Path, plan: Plan) -> AdapterFolder:
    """Read a global adapter through the gate; it must hold its aggregate.json."""
    folder = read_folder(path, plan)
    if folder.aggregate is None:
        raise InputError(f"{path}: has no {AGGREGATE_NAME}", hint="name a rounds/NNN/global folder of the coordinator")
    if folder.contribution is not None:
        raise CombineError(f"{path}: is a site's contribution, not a global adapter")
    return folder


# --- the writer -------------------------------------------------------------------------------------


def initial_factors(plan: Plan) -> dict[str, Factors]:
    """The plan's initial adapter: B = 0, A uniform in ±1/√in as in PEFT, from Philox, module by module.

    Rebuilt from the seed at every site, the same bytes everywhere: numpy guarantees the raw bit stream.
    """
    return dict(_initial_factors(plan.training.seed, plan.lora.r, tuple(plan.modules.items())))


@functools.lru_cache(maxsize=2)
def _initial_factors(seed: int, r: int, modules: tuple[tuple[str, tuple[int, int]], ...]) -> dict[str, Factors]:
    generator = np.random.Philox(seed)
    factors = {}
    for module, (size_out, size_in) in modules:
        raw = generator.random_raw(r * size_in) >> np.uint64(40)  # 24 bits: exact in float32
        uniform = raw.astype(np.float64) / 2**23 - 1
        a = (uniform / math.sqrt(size_in)).astype(np.float32).reshape(r, size_in)
        b = np.zeros((size_out, r), dtype=np.float32)
        a.flags.writeable = b.flags.writeable = False  # the arrays are shared
        factors[module] = (a, b)
    return factors


def plan_adapter(plan: Plan, factors: Mapping[str, Factors], r: int | None = None) -> Adapter:
    """An adapter as the plan implies it. A rank other than the plan's keeps the plan's scaling."""
    rank = r or plan.lora.r
    alpha = plan.lora.scaling * rank
    return Adapter(rank, alpha, tuple(sorted(plan.lora.targets)), plan.base.name, dict(sorted(factors.items())))


def adapter_files(adapter: Adapter, readme: str) -> dict[str, bytes]:
    """The files of an adapter folder, but for its record."""
    return {
        CONFIG_NAME: (json.dumps(adapter.config, indent=2) + "\n").encode("utf-8"),
        WEIGHTS_NAME: adapter.weights_bytes,
        README_NAME: readme.encode("utf-8"),
    }


def readme(base: Base, adapter: Adapter, title: str, origin: str) -> str:
    """The model card of an adapter folder: what it is, how to load it, what it is not for."""
    return f"""---
base_model: {base.name}
library_name: peft
tags:
- lora
- federated-learning
- medical
---

# {title}

{origin}

- Base model: `{base.name}`, fingerprint `{base.fingerprint}`
- LoRA: r = {adapter.r}, alpha = {adapter.config["lora_alpha"]}, on {", ".join(adapter.targets)}
- Parameters: {adapter.num_parameters:,}; adapter digest `{adapter.digest}`

Load it with PEFT on top of the base model of that fingerprint:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder")
```

For research evaluation only, not for clinical use. Its answers can be wrong.
"""
