"""The gate that every adapter passes before fedmed uses it.

Each file is read once into memory, hashed, and that same buffer is parsed: nothing can change between the
check and the use. Nothing is ever unpickled, and a foreign file is never memory-mapped.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedmed_cli.adapters.adapter import CONFIG_NAME, PREFIX, README_NAME, WEIGHTS_NAME, Adapter, tensor_name
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, is_bundle, unpack
from fedmed_cli.adapters.config import AdapterConfig, check_config, check_config_against_plan, resolved
from fedmed_cli.adapters.safetensors import MAX_HEADER_BYTES, header_bytes, parse_header, to_float32
from fedmed_cli.errors import CombineError, FedmedError, InputError, TrustError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.lora import (
    unlike,
)
from fedmed_cli.records.plan import Plan

CONTRIBUTION_NAME = "contribution.json"
AGGREGATE_NAME = "aggregate.json"
SIGNATURES = (f"{CONTRIBUTION_NAME}.sig", f"{AGGREGATE_NAME}.sig")
ALLOWED_NAMES = frozenset({CONFIG_NAME, WEIGHTS_NAME, README_NAME, CONTRIBUTION_NAME, AGGREGATE_NAME, *SIGNATURES})
MAX_WEIGHTS_BYTES = 4_000_000_000
MAX_SMALL_FILE_BYTES = 1_000_000
MAX_ENTRIES = 32
MAX_VALUE = 1e6  # in size, of a weight: far above any real one, far below what overflows in a product
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

T = TypeVar("T")


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed the gate, with the bytes of its files as they were read and the records among them.

    `signer` is the public key whose signature over the record holds; None where there is no signature.
    """

    path: Path
    adapter: Adapter
    files: dict[str, bytes] = field(repr=False)
    contribution: Contribution | None = None
    aggregate: Aggregate | None = None
    signer: str | None = None

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files.values()))


def read_folder(path: Path, plan: Plan | None = None) -> AdapterFolder:
    """Read an adapter folder, or a bundle of one, through the gate.

    With `plan`, it must be exactly the adapter the plan implies. A signature must hold for the key that it
    names; whether that key is trusted is `trust.check_signer`'s question. Raises InputError (exit code 3) for
    what is missing or corrupt, CombineError (4) for an adapter of another kind, rank, base or plan,
    TrustError (7) where a digest or a signature does not hold.
    """
    result, faults = _pass_gate(path, plan, first_only=True)
    if result is None:
        raise faults[0]
    return result


def find_faults(path: Path, plan: Plan | None = None) -> list[FedmedError]:
    """All that the gate has against a folder or bundle, in the order of its steps; empty where it passes."""
    return _pass_gate(path, plan, first_only=False)[1]


class _Refused(Exception):
    """The gate stops at the first fault."""


def _pass_gate(path: Path, plan: Plan | None, first_only: bool) -> tuple[AdapterFolder | None, list[FedmedError]]:
    """The gate's steps in order. A step that needs what an earlier one refused is left out."""
    faults: list[FedmedError] = []

    def attempt(step: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return step(*arguments)
        except FedmedError as error:
            faults.append(error)
            if first_only:
                raise _Refused from None
            return None

    try:
        if is_bundle(path):
            files = attempt(_read_bundle, path) or {}
            attempt(check_names, path, list(files))
        else:
            names = attempt(_list, path) or []
            attempt(check_names, path, names)
            small = [name for name in names if name in ALLOWED_NAMES and name != WEIGHTS_NAME]
            read = {name: attempt(read_file, path / name, MAX_SMALL_FILE_BYTES, False) for name in small}
            files = {name: data for name, data in read.items() if data is not None}
        contribution = aggregate = None
        if CONTRIBUTION_NAME in files:
            contribution = attempt(Contribution.from_bytes, files[CONTRIBUTION_NAME], str(path / CONTRIBUTION_NAME))
        if AGGREGATE_NAME in files:
            aggregate = attempt(Aggregate.from_bytes, files[AGGREGATE_NAME], str(path / AGGREGATE_NAME))
        rank = plan.rank_of(contribution.site) if plan and contribution else plan.max_rank if plan else None
        config = attempt(_read_config, path, files, plan, rank) if CONFIG_NAME in files else None
        if config is not None and WEIGHTS_NAME not in files:
            attempt(_read_weights, path, files, config, plan)
        digests = {name: sha256_bytes(data) for name, data in files.items()}
        adapter = None
        if config is not None and WEIGHTS_NAME in files:
            adapter = attempt(_parse_adapter, config, files[WEIGHTS_NAME], digests[WEIGHTS_NAME], path)
        if adapter is not None and plan is not None:
            attempt(check_against_plan, path, adapter, plan)
        for record, name in ((contribution, CONTRIBUTION_NAME), (aggregate, AGGREGATE_NAME)):
            if record is not None:
                attempt(_check_digests, path, digests, record.files, record.adapter, adapter, name)
                if plan is not None:
                    attempt(check_record, path, record.plan, record.base_fingerprint, plan)
        if contribution is not None:
            attempt(_check_sizes, path, files, contribution, plan)
        signers = [attempt(_check_signature, path, files, name) for name in (CONTRIBUTION_NAME, AGGREGATE_NAME)]
        if CONTRIBUTION_NAME in files and AGGREGATE_NAME in files:
            attempt(_refuse_two_records, path)
    except _Refused:
        return None, faults
    if faults or adapter is None:
        return None, faults
    return AdapterFolder(path, adapter, files, contribution, aggregate, signers[0] or signers[1]), faults


def _list(path: Path) -> list[str]:
    """The names in a folder."""
    if path.is_symlink():
        raise InputError(f"{path}: is a link, expected an adapter folder")
    if not path.is_dir():
        kind = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{path}: {kind}, expected an adapter folder or a bundle (…{BUNDLE_SUFFIX})")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, MAX_ENTRIES + 1))
    if len(names) > MAX_ENTRIES:
        raise InputError(f"{path}: holds more than {MAX_ENTRIES} files, expected an adapter folder")
    return names


def check_names(path: Path, names: Sequence[str]) -> None:
    """InputError unless these names, and no others, may stand in an adapter folder."""
    for name in names:
        shown_name = ascii(name)[:80]
        if name.lower().endswith(_PICKLES):
            raise InputError(
                f"{path}: holds {shown_name}; files that can carry code are never opened",
                hint="save the adapter as safetensors, in a folder without that file",
            )
        if name not in ALLOWED_NAMES:
            raise InputError(
                f"{path}: holds {shown_name}, which does not belong in an adapter folder",
                hint=f"an adapter folder holds only {', '.join(sorted(ALLOWED_NAMES))}",
            )
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if name not in names:
            raise InputError(f"{path}: has no {name}")
    for name in SIGNATURES:
        if name in names and name.removesuffix(".sig") not in names:
            raise InputError(f"{path}: holds {name}, but no {name.removesuffix('.sig')} that it could sign")


def _read_bundle(path: Path) -> dict[str, bytes]:
    files = unpack(read_file(path, MAX_WEIGHTS_BYTES), str(path))
    for name, data in files.items():
        if name != WEIGHTS_NAME and len(data) > MAX_SMALL_FILE_BYTES:
            raise InputError(f"{path / name}: expected at most {MAX_SMALL_FILE_BYTES:,} bytes, found {len(data):,}")
    return files


def _read_config(path: Path, files: Mapping[str, bytes], plan: Plan | None, rank: int) -> AdapterConfig:
    name = path / CONFIG_NAME
    config = check_config(parse_json(files[CONFIG_NAME], str(name)), str(name))
    if plan is not None:
        check_config_against_plan(str(path), config, plan, rank)
    return config


def _read_weights(path: Path, files: dict[str, bytes], config: AdapterConfig, plan: Plan | None) -> None:
    """Add the weights to `files`; no more is read than the plan's shapes can need."""
    limit = MAX_WEIGHTS_BYTES
    if plan is not None:
        limit = 4 * plan.num_parameters + MAX_HEADER_BYTES
    files[WEIGHTS_NAME] = read_file(path / WEIGHTS_NAME, limit, links=False)


def _parse_adapter(config: AdapterConfig, weights: bytes, weights_digest: str, path: Path) -> Adapter:
    targets = config.targets
    name = str(path / WEIGHTS_NAME)
    buffer = memoryview(weights)
    tensors, start = parse_header(buffer, len(weights), name)
    factors: dict[str, dict[str, np.ndarray]] = {}
    modules = dict.fromkeys(module_and_end(key)[0] for key in tensors)
    ranks = resolved(config.rank_pattern, modules, str(path / CONFIG_NAME), "rank_pattern")
    alphas = resolved(config.alpha_pattern, modules, str(path / CONFIG_NAME), "alpha_pattern")
    for key, info in tensors.items():
        module, end = module_and_end(key)
        factor = end.removesuffix(".weight")
        if not key.startswith(PREFIX) or not module or factor not in ("A", "B") or end == factor:
            raise CombineError(f"{name}: tensor {key!r} is not a LoRA factor")
        if not any(module == target or module.endswith("." + target) for target in targets):
            raise CombineError(f"{name}: tensor {key!r} is of a module that target_modules does not name")
        if info.dtype not in ("F32", "F16", "BF16"):
            raise CombineError(f"{name}: tensor {key!r} has dtype {info.dtype}, expected F32, F16 or BF16")
        rank = ranks.get(module, config.r)
        if len(info.shape) != 2 or info.shape[0 if factor == "A" else 1] != rank or 0 in info.shape:
            raise CombineError(
                f"{name}: tensor {key!r} has shape {list(info.shape)}, expected rank {rank} "
                f"({'(r, in)' if factor == 'A' else '(out, r)'})"
            )
        array = to_float32(buffer[start + info.start : start + info.end], info)
        smallest, largest = float(array.min()), float(array.max())  # NaN where any value is
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            bad = int(array.size - np.isfinite(array).sum())
            raise InputError(f"{name}: tensor {key!r} holds {bad} values that are NaN or infinite")
        if max(-smallest, largest) > MAX_VALUE:
            raise InputError(
                f"{name}: tensor {key!r} holds a value of size {max(-smallest, largest):.3g}, "
                f"expected at most {MAX_VALUE:g}"
            )
        factors.setdefault(module, {})[factor] = array
    if not factors:
        raise InputError(f"{name}: holds no tensor")
    for module, pair in factors.items():
        if len(pair) != 2:
            missing = "B" if "A" in pair else "A"
            raise InputError(f"{name}: tensor {tensor_name(module, missing)!r} is missing")
    pairs = {module: (factors[module]["A"], factors[module]["B"]) for module in sorted(factors)}
    adapter = Adapter(
        config.r,
        config.alpha,
        targets,
        config.base_name,
        pairs,
        config.use_rslora,
        unlike(ranks, config.r),
        unlike(alphas, config.alpha),
    )
    if weights[:start] == header_bytes(tensors):
        # The file is as fedmed would write it: what follows from it need not be computed again.
        adapter.__dict__.update(weights_bytes=weights, weights_digest=weights_digest)
    return adapter


def module_and_end(key: str) -> tuple[str, str]:
    """The module that a tensor's name is of, and what stands behind ".lora_"."""
    module, _, end = key.removeprefix(PREFIX).rpartition(".lora_")
    return module, end


def _check_digests(
    path: Path,
    found: Mapping[str, str],
    stated: Mapping[str, str],
    digest: str,
    adapter: Adapter | None,
    record: str,
) -> None:
    wanted = {name for name in found if name not in (CONTRIBUTION_NAME, AGGREGATE_NAME, *SIGNATURES)}
    for name in sorted(wanted | set(stated)):
        shown_name = ascii(name)[1:-1][:80]
        if name not in wanted:
            raise TrustError(f"{path}: {record} names {shown_name}, which is missing")
        if name not in stated:
            raise TrustError(f"{path}: {record} does not name {shown_name}")
        if found[name] != stated[name]:
            raise TrustError(
                f"{path / name}: {record} says sha256 {stated[name][:12]}…, found {found[name][:12]}…",
                hint="the folder was damaged or changed on its way; ask for it again",
            )
    if adapter is not None and digest != adapter.digest:
        raise TrustError(f"{path}: {record} says adapter {digest[:12]}…, found {adapter.digest[:12]}…")


def _check_sizes(path: Path, files: Mapping[str, bytes], record: Contribution, plan: Plan | None) -> None:
    """TrustError where a contribution claims other sizes than its own or its base model's."""
    found = sum(len(data) for name, data in files.items() if name in record.files)
    if record.adapter_bytes != found:
        raise TrustError(f"{path}: {CONTRIBUTION_NAME} says {record.adapter_bytes:,} adapter bytes, found {found:,}")
    if plan is not None and record.base_bytes != plan.base.num_bytes:
        raise TrustError(
            f"{path}: {CONTRIBUTION_NAME} says {record.base_bytes:,} base model bytes, the plan {plan.base.num_bytes:,}"
        )
    if plan is not None:
        try:
            record.check_tokens(plan.training.max_length)
        except ValueError as error:
            raise TrustError(f"{path}: {CONTRIBUTION_NAME}: {error}") from None


def _check_signature(path: Path, files: Mapping[str, bytes], name: str) -> str | None:
    """The key that signed a record, as a public key line; None without a signature. TrustError if it is wrong."""
    if f"{name}.sig" not in files or name not in files:
        return None
    from fedmed_cli.adapters.signatures import verify  # not needed to read unsigned folders

    return verify(files[name], files[f"{name}.sig"], str(path / f"{name}.sig"))


def _refuse_two_records(path: Path) -> None:
    raise CombineError(f"{path}: holds both {CONTRIBUTION_NAME} and {AGGREGATE_NAME}, expected one of them")


def check_against_plan(path: Path, adapter: Adapter, plan: Plan) -> None:
    """CombineError unless the modules and their sizes are the plan's; the ranks were checked with the config."""
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
    if folder.aggregate is not None:
        raise CombineError(f"{path}: is a global adapter, not a site's contribution")
    if record is None:
        raise InputError(
            f"{path}: has no {CONTRIBUTION_NAME}", hint="send the whole folder that 'fedmed train-local' wrote"
        )
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
    if folder.contribution is not None:
        raise CombineError(f"{path}: is a site's contribution, not a global adapter")
    if folder.aggregate is None:
        raise InputError(f"{path}: has no {AGGREGATE_NAME}", hint="name a rounds/NNN/global folder of the coordinator")
    return folder
