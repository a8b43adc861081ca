"""The steps of the gate, in order: what a folder or a bundle must be before fedmed uses its adapter."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fedmed_cli.adapters.adapter import CONFIG_NAME, PREFIX, WEIGHTS_NAME, Adapter, Factors, FactorsOfFile, tensor_name
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, MAX_OVERHEAD_BYTES, is_bundle, unpack
from fedmed_cli.adapters.config import AdapterConfig, check_config, check_config_against_plan, resolve_pattern
from fedmed_cli.adapters.folder import (
    ALLOWED_NAMES,
    CONTRIBUTION_NAME,
    RECORDS,
    SIGNATURES,
    SMALL_FILES,
    AdapterRecord,
)
from fedmed_cli.adapters.safetensors import MAX_HEADER_BYTES, TensorInfo, header_bytes, parse_header, to_float32
from fedmed_cli.errors import CombineError, InputError, TrustError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes, short
from fedmed_cli.records.lora import Names, unlike
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.privacy import LARGEST_DELTA

MAX_WEIGHTS_BYTES = 4_000_000_000
MAX_SMALL_FILE_BYTES = 1_000_000
MAX_ENTRIES = 32
MAX_VALUE = 1e6  # in size, of a weight: far above any real one, far below what overflows in a product
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass
class Reading:
    """A folder or bundle on its way through the gate: what was read so far.

    What a step refuses stays empty, and the steps that would need it do nothing.
    """

    path: Path
    plan: Plan | None
    names: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    records: dict[str, AdapterRecord] = field(default_factory=dict)
    config: AdapterConfig | None = None
    adapter: Adapter | None = None
    signer: str | None = None

    def add(self, name: str, data: bytes) -> None:
        self.files[name], self.digests[name] = data, sha256_bytes(data)

    def max_bytes(self, name: str) -> int:
        """How large a file may be: weights no larger than the plan's shapes need."""
        if name != WEIGHTS_NAME:
            return MAX_SMALL_FILE_BYTES
        return MAX_WEIGHTS_BYTES if self.plan is None else 4 * self.plan.num_parameters + MAX_HEADER_BYTES

    @property
    def max_bundle_bytes(self) -> int:
        return sum(map(self.max_bytes, ALLOWED_NAMES)) + MAX_OVERHEAD_BYTES

    @property
    def max_rank(self) -> int:
        """The highest rank that the plan allows whoever made the adapter."""
        assert self.plan is not None
        record = self.records.get(CONTRIBUTION_NAME)
        return self.plan.rank_of(record.site) if isinstance(record, Contribution) else self.plan.max_rank


def _list_names(reading: Reading) -> None:
    """The names in a folder; the names and the files in a bundle."""
    path = reading.path
    if is_bundle(path):
        for name, data in unpack(read_file(path, reading.max_bundle_bytes, links=False), str(path)).items():
            if len(data) > reading.max_bytes(name):
                raise InputError(
                    f"{path / name}: expected at most {reading.max_bytes(name):,} bytes, found {len(data):,}"
                )
            reading.names.append(name)
            reading.add(name, data)
        return
    if path.is_symlink():
        raise InputError(f"{path}: is a link, expected an adapter folder")
    if not path.is_dir():
        kind = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{path}: {kind}, expected an adapter folder or a bundle (…{BUNDLE_SUFFIX})")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, MAX_ENTRIES + 1))
    if len(names) > MAX_ENTRIES:
        raise InputError(f"{path}: holds more than {MAX_ENTRIES} files, expected an adapter folder")
    reading.names = names


def _check_names(reading: Reading) -> None:
    """InputError unless these names, and no others, may appear in an adapter folder."""
    for name in reading.names:
        printable = ascii(name)[:80]
        if name.lower().endswith(_PICKLES):
            raise InputError(
                f"{reading.path}: holds {printable}; files that can carry code are never opened",
                hint="save the adapter as safetensors, in a folder without that file",
            )
        if name not in ALLOWED_NAMES:
            raise InputError(
                f"{reading.path}: holds {printable}, which does not belong in an adapter folder",
                hint=f"an adapter folder holds only {', '.join(sorted(ALLOWED_NAMES))}",
            )
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if name not in reading.names:
            raise InputError(f"{reading.path}: has no {name}")
    for name in SIGNATURES:
        if name in reading.names and name.removesuffix(".sig") not in reading.names:
            raise InputError(f"{reading.path}: holds {name}, but no {name.removesuffix('.sig')} that it could sign")


def _read_file(reading: Reading, name: str) -> None:
    if name in reading.names and name not in reading.files:
        reading.add(name, read_file(reading.path / name, reading.max_bytes(name), links=False))


def _parse_record(reading: Reading, name: str) -> None:
    if name in reading.files:
        reading.records[name] = RECORDS[name].from_bytes(reading.files[name], str(reading.path / name))


def _parse_config(reading: Reading) -> None:
    if CONFIG_NAME not in reading.files:
        return
    name = str(reading.path / CONFIG_NAME)
    config = check_config(parse_json(reading.files[CONFIG_NAME], name), name)
    if reading.plan is not None:
        check_config_against_plan(str(reading.path), config, reading.plan, reading.max_rank)
    reading.config = config


def _read_weights(reading: Reading) -> None:
    """Read the weights, once the config is in order."""
    if reading.config is not None:
        _read_file(reading, WEIGHTS_NAME)


def _parse_weights(reading: Reading) -> None:
    config = reading.config
    if config is None or WEIGHTS_NAME not in reading.files:
        return
    weights, name = reading.files[WEIGHTS_NAME], str(reading.path / WEIGHTS_NAME)
    buffer = memoryview(weights)
    tensors, start = parse_header(buffer, len(weights), name)
    modules = dict.fromkeys(module_and_end(key)[0] for key in tensors)
    ranks = resolve_pattern(config.rank_pattern, modules, str(reading.path / CONFIG_NAME), "rank_pattern")
    alphas = resolve_pattern(config.alpha_pattern, modules, str(reading.path / CONFIG_NAME), "alpha_pattern")
    targets = Names(config.targets)
    factors: dict[str, dict[str, np.ndarray]] = {}
    for key, info in tensors.items():
        module, factor = _check_tensor(key, info, targets, name)
        _check_shape(key, info, factor, ranks.get(module, config.r), name)
        array = to_float32(buffer[start + info.start : start + info.end], info)
        _check_values(key, array, name)
        factors.setdefault(module, {})[factor] = array
    if not factors:
        raise InputError(f"{name}: holds no tensor")
    for module, pair in factors.items():
        if len(pair) != 2:
            missing = "B" if "A" in pair else "A"
            raise InputError(f"{name}: tensor {tensor_name(module, missing)!r} is missing")
    pairs: dict[str, Factors] = {module: (factors[module]["A"], factors[module]["B"]) for module in sorted(factors)}
    if weights[:start] == header_bytes(tensors) and all(info.dtype == "F32" for info in tensors.values()):
        pairs = FactorsOfFile(pairs, weights, reading.digests[WEIGHTS_NAME])
    reading.adapter = Adapter(
        config.r,
        config.alpha,
        config.targets,
        config.base_name,
        pairs,
        config.use_rslora,
        unlike(ranks, config.r),
        unlike(alphas, config.alpha),
    )


def module_and_end(key: str) -> tuple[str, str]:
    """The module that a tensor's name is of, and what comes after ".lora_"."""
    module, _, end = key.removeprefix(PREFIX).rpartition(".lora_")
    return module, end


def _check_tensor(key: str, info: TensorInfo, targets: Names, name: str) -> tuple[str, str]:
    """The module of a tensor and which of its factors it is, "A" or "B"; CombineError unless it may be one."""
    module, end = module_and_end(key)
    factor = end.removesuffix(".weight")
    if not key.startswith(PREFIX) or not module or factor not in ("A", "B") or end == factor:
        raise CombineError(f"{name}: tensor {key!r} is not a LoRA factor")
    if not targets.meaning(module):
        raise CombineError(f"{name}: tensor {key!r} is of a module that target_modules does not name")
    if info.dtype not in ("F32", "F16", "BF16"):
        raise CombineError(f"{name}: tensor {key!r} has dtype {info.dtype}, expected F32, F16 or BF16")
    return module, factor


def _check_shape(key: str, info: TensorInfo, factor: str, rank: int, name: str) -> None:
    if len(info.shape) != 2 or info.shape[0 if factor == "A" else 1] != rank or 0 in info.shape:
        raise CombineError(
            f"{name}: tensor {key!r} has shape {list(info.shape)}, expected rank {rank} "
            f"({'(r, in)' if factor == 'A' else '(out, r)'})"
        )


def _check_values(key: str, array: np.ndarray, name: str) -> None:
    smallest, largest = float(array.min()), float(array.max())  # NaN where any value is
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        bad = int(array.size - np.isfinite(array).sum())
        raise InputError(f"{name}: tensor {key!r} holds {bad} values that are NaN or infinite")
    if max(-smallest, largest) > MAX_VALUE:
        raise InputError(
            f"{name}: tensor {key!r} holds a value of size {max(-smallest, largest):.3g}, "
            f"expected at most {MAX_VALUE:g}"
        )


def _check_modules(reading: Reading) -> None:
    """CombineError unless the modules and their sizes are the plan's; the ranks were checked with the config."""
    adapter, plan, name = reading.adapter, reading.plan, reading.path / WEIGHTS_NAME
    if adapter is None or plan is None:
        return
    for module in plan.modules:
        if module not in adapter.factors:
            raise InputError(f"{name}: tensor {tensor_name(module, 'A')!r} is missing")
    for module, (a, b) in adapter.factors.items():
        if module not in plan.modules:
            raise CombineError(f"{name}: the plan has no module {module!r}")
        size_out, size_in = plan.modules[module]
        if a.shape[1] != size_in or b.shape[0] != size_out:
            raise CombineError(
                f"{name}: the plan expects {module} to be {size_out} x {size_in}, found {b.shape[0]} x {a.shape[1]}"
            )


def _check_digests(reading: Reading, name: str) -> None:
    """TrustError unless the record `name` gives the digest of each file, and the adapter's."""
    record = reading.records.get(name)
    if record is None:
        return
    present = set(reading.names) - {*RECORDS, *SIGNATURES}
    for file in sorted(present | set(record.files)):
        printable = ascii(file)[1:-1][:80]
        if file not in present:
            raise TrustError(f"{reading.path}: {name} names {printable}, which is missing")
        if file not in record.files:
            raise TrustError(f"{reading.path}: {name} does not name {printable}")
        stated, digest = record.files[file], reading.digests.get(file)
        if digest is not None and digest != stated:  # None where it could not be read, which is a fault of its own
            raise TrustError(
                f"{reading.path / file}: {name} says sha256 {short(stated)}…, found {short(digest)}…",
                hint="the folder was damaged or changed on its way; ask for it again",
            )
    if reading.adapter is not None and record.adapter != reading.adapter.digest:
        raise TrustError(
            f"{reading.path}: {name} says adapter {short(record.adapter)}…, found {short(reading.adapter.digest)}…"
        )


def _check_federation(reading: Reading, name: str) -> None:
    """CombineError unless the record `name` is of this plan, this base model and a site of the plan."""
    record, plan, path = reading.records.get(name), reading.plan, reading.path
    if record is None or plan is None:
        return
    if record.base_fingerprint != plan.base.fingerprint:
        raise CombineError(
            f"{path}: was trained on another base model: the plan expects fingerprint "
            f"{short(plan.base.fingerprint)}…, found {short(record.base_fingerprint)}…"
        )
    if record.plan != plan.digest:
        raise CombineError(f"{path}: is of another plan: expected {short(plan.digest)}…, found {short(record.plan)}…")
    if not isinstance(record, Aggregate) and record.site not in plan.sites.names:
        raise CombineError(f"{path}: site {record.site} is not in the plan ({', '.join(plan.sites.names)})")


def _check_sizes(reading: Reading) -> None:
    """TrustError where a contribution claims other sizes than its own or its base model's."""
    record, plan = reading.records.get(CONTRIBUTION_NAME), reading.plan
    if not isinstance(record, Contribution):
        return
    num_bytes = sum(len(data) for name, data in reading.files.items() if name in record.files)
    if record.adapter_bytes != num_bytes:
        raise TrustError(
            f"{reading.path}: {CONTRIBUTION_NAME} says {record.adapter_bytes:,} adapter bytes, found {num_bytes:,}"
        )
    if plan is not None and record.base_bytes != plan.base.num_bytes:
        raise TrustError(
            f"{reading.path}: {CONTRIBUTION_NAME} says {record.base_bytes:,} base model bytes, "
            f"the plan {plan.base.num_bytes:,}"
        )
    if plan is not None:
        try:
            record.check_tokens(plan.training.max_length)
        except ValueError as error:
            raise TrustError(f"{reading.path}: {CONTRIBUTION_NAME}: {error}") from None


def _check_privacy(reading: Reading) -> None:
    """TrustError where a contribution does not promise the privacy that the plan asks for."""
    record, plan = reading.records.get(CONTRIBUTION_NAME), reading.plan
    if not isinstance(record, Contribution) or plan is None or plan.privacy.max_epsilon is None:
        return
    total = record.privacy.total_epsilon if record.privacy else None
    if total is None or total > plan.privacy.max_epsilon:
        found = (
            "no guarantee" if record.privacy is None else f"epsilon {'unbounded' if total is None else f'{total:.3g}'}"
        )
        raise TrustError(
            f"{reading.path}: the plan asks for differential privacy with epsilon at most "
            f"{plan.privacy.max_epsilon:g}, "
            f"found {found}"
        )
    assert record.privacy is not None
    if record.privacy.delta > LARGEST_DELTA:
        raise TrustError(
            f"{reading.path}: an epsilon counts at a delta of at most {LARGEST_DELTA:g}, found {record.privacy.delta:g}"
        )


def _check_signature(reading: Reading, name: str) -> None:
    """Note the key that signed the record `name`; TrustError where the signature does not hold."""
    signature = f"{name}.sig"
    if signature not in reading.files or name not in reading.files:
        return
    from fedmed_cli.records.signatures import verify  # not needed to read unsigned folders

    reading.signer = verify(reading.files[name], reading.files[signature], str(reading.path / signature))


def _refuse_two_records(reading: Reading) -> None:
    found = [name for name in RECORDS if name in reading.files]
    if len(found) > 1:
        raise CombineError(f"{reading.path}: holds both {' and '.join(found)}, expected one of them")


STEPS: Sequence[Callable[[Reading], None]] = (
    _list_names,
    _check_names,
    *(partial(_read_file, name=name) for name in SMALL_FILES),
    *(partial(_parse_record, name=name) for name in RECORDS),
    _parse_config,
    _read_weights,
    _parse_weights,
    _check_modules,
    *(partial(_check_digests, name=name) for name in RECORDS),
    *(partial(_check_federation, name=name) for name in RECORDS),
    _check_sizes,
    _check_privacy,
    *(partial(_check_signature, name=name) for name in RECORDS),
    _refuse_two_records,
)
