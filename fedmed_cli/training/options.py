"""What a site sets about its training by itself, in transformers' words; the plan fixes the rest. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedmed_cli.errors import InputError
from fedmed_cli.records.plan import Plan

DEFAULT_EVAL_SAMPLES = 100
MOST_STEPS = 60_000  # of one training: its record holds the loss of each, and is read up to a million bytes


@dataclass(frozen=True)
class TrainingOptions:
    """What an adapter's bytes depend on: how a step is computed, and whether evaluations select the step.

    A step updates on `per_device_train_batch_size * gradient_accumulation_steps` examples. How they are
    packed into forward passes, and whether activations are kept (`gradient_checkpointing`), changes no
    gradient beyond rounding: the loss is the mean over all answer tokens of the step. `max_batch_tokens`
    bounds the positions of a forward pass, padding to the longest included. With `eval_steps` the step with the
    least loss on one half of the validation examples is kept, and `early_stopping_patience` ends the training
    after that many evaluations without a better one.
    """

    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 1
    max_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    eval_steps: int | None = None
    early_stopping_patience: int | None = None

    @property
    def examples_per_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class PrivacyOptions:
    """Differential privacy (DP-SGD), in the words of Opacus: one of `epsilon` and `noise_multiplier` is given.

    `epsilon` is of one training. A unit's gradient is shortened to `max_grad_norm`. `delta` None is a tenth of one
    unit's share, at most 1e-5.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class SiteSettings:
    """All that a site sets: its options, how long it trains, and the bookkeeping around.

    `max_steps` None takes `num_train_epochs`, or without that the plan's. A checkpoint is written every
    `save_steps` steps (None: every minute), a line of numbers every `logging_steps`; `report_to` may be
    "tensorboard". With `privacy` a step takes units of privacy instead of examples. `budget` is the most epsilon that
    all trainings on the same records may have together. Half of `canaries` synthetic examples are trained on too, each
    `canary_repeats` times, so that an audit can look for them.
    """

    options: TrainingOptions = TrainingOptions()  # frozen
    max_steps: int | None = None
    num_train_epochs: float | None = None
    max_eval_samples: int = DEFAULT_EVAL_SAMPLES
    save_steps: int | None = None
    logging_steps: int = 10
    report_to: str | None = None
    privacy: PrivacyOptions | None = None
    budget: float | None = None
    canaries: int = 0
    canary_repeats: int = 1

    def steps(self, plan: Plan, num_examples: int) -> int:
        """The steps of a round for a site of that many examples (or units of privacy), at least 1.

        InputError where the contribution's record could not hold the loss of each.
        """
        steps = self.max_steps or plan.training.max_steps
        if self.max_steps is None and self.num_train_epochs is not None:
            steps_an_epoch = math.ceil(num_examples / self.options.examples_per_step)
            steps = max(1, math.ceil(self.num_train_epochs * steps_an_epoch))
        if steps > MOST_STEPS and self.privacy is None:
            raise InputError(
                f"{steps:,} steps in a round are more than a record can hold ({MOST_STEPS:,})",
                hint="take larger steps with --gradient-accumulation-steps, or more rounds",
            )
        return steps
