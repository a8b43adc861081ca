"""Making a federation's plan, and checking given options against the one that is there."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedmed_cli.errors import UsageError
from fedmed_cli.events import Say
from fedmed_cli.models import bases, bundled_base
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Plan, Prompt, Sites, Training
from fedmed_cli.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The options of `split` and `init` that the plan fixes; None where not given."""

    base: str | None = None
    revision: str | None = None
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    lr_scheduler_rounds: int | None = None
    warmup_steps: int | None = None
    fedprox_mu: float | None = None
    max_steps: int | None = None
    max_length: int | None = None
    lora_r: int | None = None
    lora_alpha: float | None = None
    lora_target_modules: tuple[str, ...] | None = None
    use_rslora: bool | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    system_prompt: str | None = None
    seed: int | None = None


def make_plan(options: PlanOptions, names: tuple[str, ...], min_sites: int | None, say: Say) -> Plan:
    """A new plan from the given options and the defaults. UsageError names the option that does not fit."""
    lora = {
        "r": options.lora_r,
        "alpha": options.lora_alpha,
        "targets": options.lora_target_modules,
        "use_rslora": options.use_rslora,
        "rank_pattern": options.rank_pattern,
        "alpha_pattern": options.alpha_pattern,
    }
    training_names = {field.name for field in dataclasses.fields(Training)}
    training = {name: value for name, value in dataclasses.asdict(options).items() if name in training_names}
    try:
        return Plan(
            base=bases.describe(options.base or bundled_base.NAME, options.revision, say),
            lora=Lora(**_given(lora)),
            prompt=Prompt(**_given({"system": options.system_prompt})),
            training=Training(**_given(training)),
            sites=Sites(names, min_sites if min_sites is not None else len(names) // 2 + 1),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def plan_for_sites(workspace: Workspace, options: PlanOptions, names: tuple[str, ...], say: Say) -> Plan:
    """The workspace's plan, or a new one that is not written yet. UsageError where it contradicts what is given."""
    if not workspace.plan_path.exists():
        return make_plan(options, names, None, say)
    plan = workspace.read_plan()
    check_options(options, plan)
    if plan.sites.names != names:
        raise UsageError(f"the plan's sites are {', '.join(plan.sites.names)}, found {', '.join(names)}")
    return plan


def check_options(options: PlanOptions, plan: Plan) -> None:
    """UsageError where a given option contradicts the plan. The base is checked by its fingerprint, later."""
    agreed: dict[str, Any] = {
        "learning_rate": plan.training.learning_rate,
        "lr_scheduler_type": plan.training.lr_scheduler_type,
        "lr_scheduler_rounds": plan.training.lr_scheduler_rounds,
        "warmup_steps": plan.training.warmup_steps,
        "fedprox_mu": plan.training.fedprox_mu,
        "max_steps": plan.training.max_steps,
        "max_length": plan.training.max_length,
        "lora_r": plan.lora.r,
        "lora_alpha": plan.lora.alpha,
        "lora_target_modules": plan.lora.targets,
        "use_rslora": plan.lora.use_rslora,
        "rank_pattern": plan.lora.rank_pattern,
        "alpha_pattern": plan.lora.alpha_pattern,
        "system_prompt": plan.prompt.system,
        "seed": plan.training.seed,
    }
    for name, value in agreed.items():
        given = getattr(options, name)
        if given is not None and given != value:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} is {_text(given)}, but the plan has {_text(value)}",
                hint="omit this option: all sites must use the plan's value",
            )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={number}" for key, number in sorted(value.items())) or "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)
