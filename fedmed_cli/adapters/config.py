"""What an adapter_config.json may say, read strictly: a plain LoRA and nothing else, and which one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.records.codec import describe_value
from fedmed_cli.records.lora import MAX_ALPHA, MAX_RANK, MODULE_NAME, Number, resolve
from fedmed_cli.records.plan import Plan

# What an adapter_config.json may say. Keys that are not here may only be null, false or empty; `None` as a
# value means that the key is checked below.
_KEYS: dict[str, tuple[Any, ...] | None] = {
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
    "rank_pattern": None,
    "alpha_pattern": None,
    "use_dora": (False, None),
    "peft_version": None,
    "revision": None,
    "auto_mapping": (None,),
    "ensure_weight_tying": (False, None),
    "megatron_core": ("megatron.core", None),
    "qalora_group_size": (16, None),
    "runtime_config": ({"ephemeral_gpu_offload": False}, None),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says that fedmed needs."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str
    use_rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


def check_config(config: Any, name: str) -> AdapterConfig:
    """The config of a parsed adapter_config.json, which errors call `name`.

    CombineError for any other kind of adapter, InputError where it is not an object or lacks what it needs.
    """
    if not isinstance(config, dict):
        raise InputError(f"{name}: expected an object, found {type(config).__name__}")
    for key, value in config.items():
        what = ascii(key)[1:-1][:60]
        if key not in _KEYS:
            if value is not None and value is not False and value != [] and value != {}:
                raise CombineError(f"{name}: {what} is set; fedmed combines plain LoRA adapters only")
        elif (allowed := _KEYS[key]) is not None and not any(type(value) is type(x) and value == x for x in allowed):
            wanted = " or ".join(repr(x) for x in allowed if x is not None) or "null"
            raise CombineError(f"{name}: {what} must be {wanted}, found {describe_value(value)}")
    for key in ("peft_type", "r", "lora_alpha", "target_modules"):
        if key not in config:
            raise InputError(f"{name}: {key} is missing")
    r, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    _check_rank(name, "r", r)
    _check_alpha(name, "lora_alpha", alpha)
    ranks = _check_pattern(config.get("rank_pattern"), name, "rank_pattern", _check_rank)
    alphas = _check_pattern(config.get("alpha_pattern"), name, "alpha_pattern", _check_alpha)
    if not isinstance(targets, list):
        raise CombineError(f"{name}: target_modules must be a plain list of names, found {type(targets).__name__}")
    if not 0 < len(targets) <= 1000 or not all(isinstance(x, str) and MODULE_NAME.fullmatch(x) for x in targets):
        raise CombineError(f"{name}: target_modules must be a plain list of names, found other entries")
    dropout = config.get("lora_dropout", 0)
    if dropout is not None and (type(dropout) not in (int, float) or not 0 <= dropout < 1):
        raise CombineError(f"{name}: lora_dropout must be from 0 to below 1, found {describe_value(dropout)}")
    for key, limit in (("base_model_name_or_path", 1000), ("revision", 100), ("peft_version", 100)):
        text = config.get(key)
        if text is not None and (not isinstance(text, str) or len(text) > limit or not text.isprintable()):
            raise CombineError(
                f"{name}: {key} must be at most {limit} printable characters, found {describe_value(text)}"
            )
    return AdapterConfig(
        r,
        float(alpha),
        tuple(sorted(targets)),
        config.get("base_model_name_or_path") or "",
        config.get("use_rslora") is True,
        ranks,
        {key: float(value) for key, value in alphas.items()},
    )


def _check_rank(name: str, what: str, value: Any) -> None:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise CombineError(f"{name}: {what} must be a whole number from 1 to {MAX_RANK}, found {describe_value(value)}")


def _check_alpha(name: str, what: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:
        raise CombineError(f"{name}: {what} must be above 0 and at most {MAX_ALPHA}, found {describe_value(value)}")


def _check_pattern(pattern: Any, name: str, what: str, check: Callable[[str, str, Any], None]) -> dict[str, Any]:
    """A rank_pattern or alpha_pattern whose keys are plain module names: PEFT would take any regular expression."""
    if pattern is None:
        return {}
    if not isinstance(pattern, dict) or not all(MODULE_NAME.fullmatch(key) for key in pattern):
        raise CombineError(f"{name}: {what} must map plain module names to numbers, found {describe_value(pattern)}")
    for key, value in pattern.items():
        check(name, f"{what} of {key[:80]}", value)
    return pattern


def resolve_pattern(pattern: Mapping[str, Number], modules: Collection[str], name: str, what: str) -> dict[str, Number]:
    """What a config's rank_pattern or alpha_pattern gives to each module; CombineError where it means none or two."""
    try:
        return resolve(pattern, modules)
    except ValueError as error:
        raise CombineError(f"{name}: {what}: {error}") from None


def check_config_against_plan(name: str, config: AdapterConfig, plan: Plan, rank: int) -> None:
    """CombineError unless config is what the plan implies where no rank is above `rank`."""
    lora = plan.lora
    r, alpha = plan.common(rank)
    expected: list[tuple[str, object, object]] = [
        ("rank r", r, config.r),
        ("lora_alpha", alpha, config.alpha),
        ("target_modules", sorted(plan.lora.targets), list(config.targets)),
        ("base_model_name_or_path", plan.base.name, config.base_name),
        ("use_rslora", lora.use_rslora, config.use_rslora),
    ]
    for what, wanted, stated in expected:
        if wanted != stated:
            raise CombineError(f"{name}: the plan expects {what} {wanted}, found {ascii(stated)[:200]}")
    if lora.rank_pattern or lora.alpha_pattern or config.rank_pattern or config.alpha_pattern:
        ranks = resolve_pattern(config.rank_pattern, plan.modules, name, "rank_pattern")
        alphas = resolve_pattern(config.alpha_pattern, plan.modules, name, "alpha_pattern")
        for module in plan.modules:
            wanted = min(rank, plan.rank(module))
            if (stated := ranks.get(module, config.r)) != wanted:
                raise CombineError(f"{name}: the plan expects rank {wanted} for {module}, found {stated}")
            alpha = plan.alpha(module, wanted)
            if (stated_alpha := alphas.get(module, config.alpha)) != alpha:
                raise CombineError(f"{name}: the plan expects alpha {alpha} for {module}, found {stated_alpha}")
