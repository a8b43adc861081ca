"""`fedmed init`: write the plan alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def init(
    names: Annotated[str, typer.Option("--names", help="Comma-separated names of the sites.")],
    min_sites: Annotated[
        int | None, typer.Option("--min-sites", min=1, help=r"Minimum contributions per round \[more than half].")
    ] = None,
    base: o.BaseOption = None,
    revision: o.RevisionOption = None,
    max_steps: o.MaxStepsOption = None,
    learning_rate: o.LearningRateOption = None,
    lr_scheduler_type: o.SchedulerOption = None,
    warmup_steps: o.WarmupOption = None,
    lr_scheduler_rounds: o.SchedulerRoundsOption = None,
    fedprox_mu: o.FedproxOption = None,
    max_length: o.MaxLengthOption = None,
    lora_r: o.LoraROption = None,
    lora_alpha: o.LoraAlphaOption = None,
    lora_target_modules: o.LoraTargetsOption = None,
    use_rslora: o.RsloraOption = None,
    rank_pattern: o.RankPatternOption = None,
    alpha_pattern: o.AlphaPatternOption = None,
    system_prompt: o.SystemPromptOption = None,
    seed: o.SeedOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Write only the plan (federation.toml); use when each hospital keeps its own data.

    Example: fedmed init --names A,B,C --base smollm2-135m
    """
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.durable import write_file
    from fedmed_cli.errors import ConflictError
    from fedmed_cli.federation.plan import PlanOptions, make_plan
    from fedmed_cli.records.digests import short
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    if place.plan_path.exists():
        raise ConflictError(f"{place.plan_path} exists already", hint="use another folder with --workspace")
    plan = make_plan(
        PlanOptions(
            base=base,
            revision=revision,
            learning_rate=learning_rate,
            lr_scheduler_type=lr_scheduler_type,
            warmup_steps=warmup_steps,
            lr_scheduler_rounds=lr_scheduler_rounds,
            fedprox_mu=fedprox_mu,
            max_steps=max_steps,
            max_length=max_length,
            lora_r=lora_r,
            lora_alpha=lora_alpha,
            lora_target_modules=o.names("--lora-target-modules", lora_target_modules) if lora_target_modules else None,
            use_rslora=use_rslora,
            rank_pattern=o.pattern("--rank-pattern", rank_pattern, int),
            alpha_pattern=o.pattern("--alpha-pattern", alpha_pattern, float),
            system_prompt=system_prompt,
            seed=seed,
        ),
        o.names("--names", names),
        min_sites,
        screen.say,
    )
    with place.lock():
        write_file(place.plan_path, plan.to_bytes())
    screen.result(
        {"plan": plan.digest, "path": str(place.plan_path), "sites": list(plan.sites.names)},
        f"wrote {place.plan_path} (plan {short(plan.digest)}): send this file to {', '.join(plan.sites.names)}",
    )
