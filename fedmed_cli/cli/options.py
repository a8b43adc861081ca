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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.cli import parse
from fedmed_cli.errors import UsageError
from fedmed_cli.records.combining import LARGEST_STEP, METHODS, ROBUST_MEANS, WEIGHTINGS, list_choices

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import AggregationSettings
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.data.split_options import IndexOptions
    from fedmed_cli.federation import plan as planning
    from fedmed_cli.models.base_model import BaseModel
    from fedmed_cli.training.options import SiteSettings
    from fedmed_cli.workspace import Workspace


def option(flag: str, text: str, *more: str, panel: str | None = None, env: bool = True, **rest: Any) -> Any:
    """A Typer option, by default one that also reads FEDMED_<FLAG>.

    Brackets in `text` are kept: rich would take them as its markup.
    """
    variable = "FEDMED_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper() if env else None
    return typer.Option(
        flag,
        *more,
        help=text.replace("[", r"\["),
        envvar=variable,
        show_envvar=False,
        rich_help_panel=panel,
        **rest,
    )


_plan = functools.partial(option, panel="What the plan fixes")
_training = functools.partial(option, panel="How to train")
_privacy = functools.partial(option, panel="Differential privacy")
_combining = functools.partial(option, panel="How to combine")
data_option = functools.partial(option, panel="The data", env=False)
leak_option = functools.partial(option, panel="What must not leak", env=False)
waiting_option = functools.partial(option, panel="Unattended")
_common = functools.partial(option, panel="Everywhere")


BaseOption = Annotated[str | None, _plan("--base", "Base model: smollm2-135m (embedded), a hub id, or a local folder.")]
MaxStepsOption = Annotated[int | None, option("--max-steps", "Training steps per site and round [100].", min=1)]
FourBitOption = Annotated[
    bool, _training("--load-in-4bit", "Load the base model in 4 bits (NF4, double quantisation).")
]
DeviceOption = Annotated[str, option("--device", "auto, cpu, cuda or mps.")]
EngineOption = Annotated[
    str, option("--engine", "auto, llama.cpp (the embedded base, or with --gguf) or transformers.")
]
GgufOption = Annotated[
    Path | None, option("--gguf", "A GGUF file of the plan's base model for llama.cpp.", dir_okay=False)
]
KeyOption = Annotated[Path | None, option("--key", "The private key file [where 'fedmed keys new' puts one].")]
RequireSignaturesOption = Annotated[
    bool, option("--require-signatures", "Refuse anything not signed with a key that the plan pins.")
]
GuardrailsOption = Annotated[
    str,
    option("--guardrails", "standard, or strict, which treats more questions as urgent, harmful or for a clinician."),
]
ColumnsOption = Annotated[
    str | None, data_option("--columns", "Names of the columns: question=Q,answer=A (or messages=M, text=T).")
]
MaxBadOption = Annotated[
    float,
    data_option("--max-bad", "Maximum share of invalid rows; they are counted and skipped.", min=0.0, max=1.0),
]
NearDuplicatesOption = Annotated[
    str,
    leak_option(
        "--near-duplicates",
        "Minimum similarity (0.3 to 1) at which near-duplicates are kept in one set; off disables.",
        env=False,
    ),
]
PhiOption = Annotated[
    str,
    leak_option("--phi", "Scan for patient identifiers such as dates and numbers: off, warn, block or redact."),
]


LedgerOption = Annotated[
    Path | None,
    _privacy(
        "--privacy-ledger",
        "The hospital's privacy ledger [privacy.jsonl beside the user's key].",
        dir_okay=False,
        env=False,
    ),
]


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What every command takes."""

    workspace: Annotated[Path, _common("--workspace", "The federation's folder.", "-C", file_okay=False)] = Path(".")
    as_json: Annotated[bool, _common("--json", "Print the result as JSON.", env=False)] = False
    quiet: Annotated[bool, _common("--quiet", "Print only errors (and JSON).", "-q", env=False)] = False
    verbose: Annotated[bool, _common("--verbose", "Print more: versions, device, folders.", "-v", env=False)] = False

    def open(self) -> tuple[Screen, Workspace]:
        """Where the command shows its results, and the workspace, which may not exist yet."""
        from fedmed_cli.cli.screen import Screen
        from fedmed_cli.workspace import Workspace

        screen = Screen(self.as_json, self.quiet, self.verbose)
        return screen, Workspace(self.workspace, screen.say)


@dataclasses.dataclass(frozen=True)
class WaitOptions:
    """How a command waits for its input."""

    wait: Annotated[bool, waiting_option("--wait", "Wait for the input, and act once it is complete.", env=False)] = (
        False
    )
    mailbox: Annotated[Path | None, waiting_option("--mailbox", "With --wait: the shared folder.", file_okay=False)] = (
        None
    )
    rounds: Annotated[
        int | None, waiting_option("--rounds", "With --wait: stop once this round exists [one more].", min=1, env=False)
    ] = None
    poll: Annotated[float | None, waiting_option("--poll", "With --wait: seconds between checks [30].", min=0.01)] = (
        None
    )

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
    revision: Annotated[str | None, _plan("--revision", "Revision of a hub id.")] = None
    max_steps: MaxStepsOption = None
    learning_rate: Annotated[
        float | None, _plan("--learning-rate", "AdamW's step size [2e-3 for smollm2-135m, 2e-4 for others].")
    ] = None
    lr_scheduler_type: Annotated[str | None, _plan("--lr-scheduler-type", "constant, linear or cosine [constant].")] = (
        None
    )
    warmup_steps: Annotated[int | None, _plan("--warmup-steps", "Steps of linear warm-up in a round [0].")] = None
    lr_scheduler_rounds: Annotated[
        int | None, _plan("--lr-scheduler-rounds", "Rounds spanned by one linear or cosine decay [1].")
    ] = None
    max_epsilon: Annotated[
        float | None,
        _plan(
            "--max-epsilon",
            "Require differential privacy of every contribution, with a total epsilon of at most this.",
            min=1e-3,
            max=1000,
        ),
    ] = None
    max_audit_auc: Annotated[
        float | None,
        _plan("--max-audit-auc", "Have 'pack' refuse a contribution whose audit exceeds this AUC.", min=0.5, max=1),
    ] = None
    fedprox_mu: Annotated[
        float | None, _plan("--fedprox-mu", "FedProx's mu: pull towards the adapter that the round starts from [0].")
    ] = None
    max_length: Annotated[int | None, _plan("--max-length", "Maximum tokens per example [1024].")] = None
    lora_r: Annotated[int | None, _plan("--lora-r", "Rank of the adapters [8].")] = None
    lora_alpha: Annotated[float | None, _plan("--lora-alpha", "LoRA alpha [16].")] = None
    lora_target_modules: Annotated[
        str | None, _plan("--lora-target-modules", "Comma-separated modules to adapt [q_proj,v_proj].")
    ] = None
    use_rslora: Annotated[bool | None, _plan("--use-rslora", "Scale by alpha / sqrt(r) (rsLoRA), not alpha / r.")] = (
        None
    )
    rank_pattern: Annotated[
        str | None, _plan("--rank-pattern", "Ranks of individual modules: down_proj=16,v_proj=4.")
    ] = None
    alpha_pattern: Annotated[str | None, _plan("--alpha-pattern", "Alphas of individual modules: down_proj=32.")] = None
    system_prompt: Annotated[str | None, _plan("--system-prompt", "System prompt.")] = None
    seed: Annotated[int | None, option("--seed", "Seed of the split and of all training [0].")] = None

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
class DataOptions:
    """A hospital's own file, and what is looked for in it."""

    data: Annotated[
        list[str] | None,
        data_option(
            "--data", "The hospital's own file (or several, or a glob); without it, data/SITE/ of the workspace."
        ),
    ] = None
    columns: ColumnsOption = None
    max_bad: MaxBadOption = 0.001
    group_by: Annotated[
        str | None, leak_option("--group-by", "With --data, keep rows with the same value of this column together.")
    ] = None
    near_duplicates: NearDuplicatesOption = "0.6"
    phi: PhiOption = "warn"

    def parsed(self) -> tuple[Mapping[str, str] | None, IndexOptions]:
        """The columns' names, and what to look for, as the core takes them; UsageError names what does not fit."""
        from fedmed_cli.data.identifiers import MODES
        from fedmed_cli.data.split_options import IndexOptions

        for field in dataclasses.fields(self):
            if self.data is None and getattr(self, field.name) != field.default:
                flag = "--" + field.name.replace("_", "-")
                raise UsageError(
                    f"{flag} goes with --data",
                    hint="data/SITE/ was looked through when it was written: omit the option",
                )
        options = IndexOptions(
            group_by=self.group_by,
            near_duplicates=parse.similarity("--near-duplicates", self.near_duplicates),
            phi=parse.choice("--phi", self.phi, MODES),
            max_bad=self.max_bad,
        )
        return parse.mapping("--columns", self.columns) if self.columns else None, options


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Where the base model runs, and where it is when it is not where the plan says."""

    device: Annotated[str, option("--device", "auto, cpu, cuda or mps.")] = "auto"
    base: BaseOption = None
    base_wheel: Annotated[
        Path | None, option("--base-wheel", "Take the embedded base model from this wheel file, without a network.")
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
        int, _training("--per-device-train-batch-size", "Examples per forward pass.", min=1, metavar="N")
    ] = 2
    gradient_accumulation_steps: Annotated[
        int, _training("--gradient-accumulation-steps", "Forward passes per training step.", min=1, metavar="N")
    ] = 1
    num_train_epochs: Annotated[
        float | None, _training("--num-train-epochs", "Passes over a site's examples, instead of --max-steps.")
    ] = None
    max_batch_tokens: Annotated[
        int | None,
        _training(
            "--max-batch-tokens",
            "Maximum positions per forward pass; a larger batch is split, with the same gradient.",
            min=16,
            metavar="N",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        _training("--gradient-checkpointing", "Recompute activations instead of keeping them: less memory, slower."),
    ] = False
    load_in_4bit: FourBitOption = False
    eval_steps: Annotated[
        int | None,
        _training(
            "--eval-steps",
            "Evaluate every N steps on half of the validation examples, and keep the best step.",
            min=1,
            metavar="N",
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        _training(
            "--early-stopping-patience",
            "With --eval-steps: stop after this many evaluations without improvement.",
            min=1,
            metavar="N",
        ),
    ] = None
    save_steps: Annotated[
        int | None, _training("--save-steps", "Steps between checkpoints [every minute].", min=1, metavar="N")
    ] = None
    logging_steps: Annotated[
        int, _training("--logging-steps", "Steps between lines of the log in .fedmed/training/.", min=1, metavar="N")
    ] = 10
    report_to: Annotated[
        str | None, _training("--report-to", "tensorboard: write event files to .fedmed/tensorboard/.")
    ] = None

    dp_epsilon: Annotated[
        float | None, _privacy("--dp-epsilon", "Train with differential privacy (DP-SGD) at this epsilon.", min=1e-3)
    ] = None
    dp_noise_multiplier: Annotated[
        float | None,
        _privacy("--dp-noise-multiplier", "Ratio of noise to clipping norm, instead of --dp-epsilon.", min=1e-3),
    ] = None
    dp_delta: Annotated[
        float | None,
        _privacy(
            "--dp-delta", "Delta of the guarantee [a tenth of one unit's share, at most 1e-5].", min=1e-100, max=0.1
        ),
    ] = None
    dp_max_grad_norm: Annotated[
        float, _privacy("--dp-max-grad-norm", "Norm to which each unit's gradient is clipped.", min=1e-9)
    ] = 1.0
    dp_budget: Annotated[
        float | None,
        _privacy(
            "--dp-budget",
            "Refuse to train if all trainings on the same records would together exceed this epsilon.",
            min=1e-3,
        ),
    ] = None

    canaries: Annotated[
        int,
        _privacy(
            "--canaries",
            "Also train on about half of N synthetic examples, which 'fedmed audit' looks for.",
            min=0,
            max=100_000,
            metavar="N",
        ),
    ] = 0
    canary_repeats: Annotated[
        int, _privacy("--canary-repeats", "How many times to train on each canary.", min=1, max=10_000)
    ] = 1

    def site_settings(self, max_eval_samples: int | None) -> SiteSettings:
        """As the core takes them; UsageError where two options contradict each other."""
        from fedmed_cli.training.options import DEFAULT_EVAL_SAMPLES, PrivacyOptions, SiteSettings
        from fedmed_cli.training.options import TrainingOptions as Options

        epochs = self.num_train_epochs
        if self.max_steps is not None and epochs is not None:
            raise UsageError("--max-steps and --num-train-epochs are alternatives", hint="omit one of them")
        if epochs is not None and not 0 < epochs <= 10_000:
            raise UsageError(f"--num-train-epochs: expected a number above 0 and at most 10000, found {epochs}")
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise UsageError("--early-stopping-patience goes with --eval-steps")
        if self.report_to is not None:
            parse.choice("--report-to", self.report_to, ("tensorboard",))
        if self.dp_epsilon is not None and self.dp_noise_multiplier is not None:
            raise UsageError("--dp-epsilon and --dp-noise-multiplier are alternatives", hint="omit one of them")
        if self.canary_repeats != 1 and not self.canaries:
            raise UsageError("--canary-repeats goes with --canaries")
        privacy = None
        if self.dp_epsilon is None and self.dp_noise_multiplier is None:
            if self.dp_delta is not None or self.dp_max_grad_norm != 1:
                raise UsageError("--dp-delta and --dp-max-grad-norm go with --dp-epsilon or --dp-noise-multiplier")
        else:
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
        _combining(
            "--weights",
            f"How sites are weighted: {list_choices(WEIGHTINGS)} "
            "[agentic where the coordinator has examples of two groups, else tokens].",
        ),
    ] = None
    method: Annotated[str, _combining("--method", f"How to combine the updates: {list_choices(METHODS)}.")] = "svd"
    robust: Annotated[str, _combining("--robust", f"How to average the updates: {list_choices(ROBUST_MEANS)}.")] = (
        "none"
    )
    num_malicious: Annotated[
        int | None, _combining("--num-malicious", "Malicious sites that a robust mean must withstand [1].", min=0)
    ] = None
    clip: Annotated[
        float,
        _combining(
            "--clip",
            "Shorten updates longer than this multiple of the median norm (3 or more sites); 0 disables.",
            min=0.0,
            max=100.0,
        ),
    ] = 1.5
    server_lr: Annotated[
        str | None,
        _combining("--server-lr", "Size of the server's step, or auto [auto with agentic weights and svd, else 1]."),
    ] = None
    server_momentum: Annotated[
        float,
        _combining("--server-momentum", "Fraction of the previous round's step to carry over.", min=0.0, max=0.99),
    ] = 0.0

    def settings(self, default_weights: Callable[[], str], start_rounds: bool = False) -> AggregationSettings:
        """As the core takes them; UsageError names the one that does not fit.

        With `start_rounds` only methods are allowed from whose result a round can start.
        """
        from fedmed_cli.aggregation.state import AggregationSettings, default_server_lr

        methods = [name for name, row in METHODS.items() if row.starts_round or not start_rounds]
        method = METHODS[parse.choice("--method", self.method, methods)]
        weights = parse.choice("--weights", self.weights or default_weights(), WEIGHTINGS)
        parse.choice("--robust", self.robust, ROBUST_MEANS)
        step = default_server_lr(self.method, weights) if self.server_lr is None else None
        if self.server_lr not in (None, "auto"):
            try:
                step = float(self.server_lr)
            except ValueError:
                step = math.nan
            if not 0 < step <= LARGEST_STEP:
                raise UsageError(
                    f"--server-lr: expected auto or a number above 0 and at most {LARGEST_STEP:g}, "
                    f"found {self.server_lr!r}"
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
