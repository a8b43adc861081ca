"""Making a federation's plan, and checking given options against the one that is there."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.events import Say
from fedmed_cli.models import bases, bundled_base
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Plan, PrivacyRules, Prompt, Sites, Training
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
    max_epsilon: float | None = None
    max_audit_auc: float | None = None
    seed: int | None = None


# Where the plan's [lora] and [prompt] hold options of another name; [training] has the options' own names.
_LORA = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_target_modules": "targets",
    "use_rslora": "use_rslora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
_PROMPT = {"system_prompt": "system"}


def make_plan(options: PlanOptions, names: tuple[str, ...], min_sites: int | None, say: Say) -> Plan:
    """A new plan from the given options and the defaults. UsageError names the option that does not fit.

    The embedded base has a default learning rate of its own.
    """
    given = _list_given(options)
    base = options.base or bundled_base.NAME
    if base == bundled_base.NAME:
        given.setdefault("learning_rate", bundled_base.LEARNING_RATE)
    training_names = {field.name for field in dataclasses.fields(Training)}
    try:
        return Plan(
            base=bases.describe(base, options.revision, say),
            lora=Lora(**{field: given[option] for option, field in _LORA.items() if option in given}),
            prompt=Prompt(**{field: given[option] for option, field in _PROMPT.items() if option in given}),
            training=Training(**{name: value for name, value in given.items() if name in training_names}),
            sites=Sites(names, min_sites if min_sites is not None else len(names) // 2 + 1),
            privacy=PrivacyRules(options.max_epsilon, options.max_audit_auc),
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
    agreed = dataclasses.asdict(plan.training)
    agreed |= {option: getattr(plan.lora, field) for option, field in _LORA.items()}
    agreed |= {option: getattr(plan.prompt, field) for option, field in _PROMPT.items()}
    agreed |= dataclasses.asdict(plan.privacy)
    for name, value in _list_given(options).items():
        if name in agreed and value != agreed[name]:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} is {_format_option(value)}, but the plan has {_format_option(agreed[name])}",
                hint="omit this option: all sites must use the plan's value",
            )


def check_site(plan: Plan, site: str) -> None:
    """InputError unless the plan has the site."""
    if site not in plan.sites.names:
        raise InputError(f"the plan has no site {site!r}", hint=f"its sites are {', '.join(plan.sites.names)}")


def _list_given(options: PlanOptions) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(options).items() if value is not None}


def _format_option(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={number}" for key, number in sorted(value.items())) or "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)
