"""One site's training: a plain loop over length-batched examples, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from fedmed_cli.adapters import Adapter, plan_adapter
from fedmed_cli.batches import nll_per_example
from fedmed_cli.digests import sha256_json
from fedmed_cli.errors import InputError, MachineError
from fedmed_cli.examples import Encoded
from fedmed_cli.models import LanguageModel
from fedmed_cli.records import Plan

WINDOW_BATCHES = 32


@dataclass(frozen=True)
class Step:
    """What is shown after each step. `loss` is this batch's, in nats per supervised token."""

    step: int
    max_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """The result of a site's steps; `losses` has one value a step, measured before that step's update."""

    adapter: Adapter
    losses: tuple[float, ...]
    num_examples: int
    num_tokens: int
    seconds: float
    tokens_per_second: float


def batches(encoded: Sequence[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches, epoch after epoch, each example once an epoch.

    Examples are shuffled, sorted by length within windows of 32 batches to save padding, and the batches of
    an epoch are shuffled again. The order depends on the seed alone.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    while True:
        order = generator.permutation(len(encoded))
        epoch = []
        window = WINDOW_BATCHES * batch_size
        for start in range(0, len(order), window):
            chunk = sorted(order[start : start + window], key=lambda index: len(encoded[index].ids))
            epoch += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        for position in generator.permutation(len(epoch)):
            yield [encoded[index] for index in epoch[position]]


def order_seed(plan: Plan, site: str, round_number: int) -> int:
    """The seed of a site's data order in a round, the same wherever the round is run."""
    return int(sha256_json([plan.training.seed, site, round_number])[:16], 16)


def train(
    lm: LanguageModel,
    plan: Plan,
    start: Adapter,
    encoded: Sequence[Encoded],
    *,
    max_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[Step], None] | None = None,
) -> Trained:
    """Train the plan's adapter from `start` for `max_steps` steps of AdamW with a fresh optimiser.

    Nothing of earlier trainings in this process matters. InputError where the loss stops being finite,
    MachineError where memory runs out.
    """
    options = plan.training
    torch.manual_seed(seed % 2**63)
    lm.use(start)
    lm.model.train()
    parameters = lm.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    scheduler = transformers.get_scheduler(
        options.lr_scheduler_type, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=max_steps
    )
    losses: list[float] = []
    num_examples = num_supervised = num_tokens = 0
    started = time.perf_counter()
    try:
        for batch in batches(encoded, batch_size, seed):
            labels = sum(example.num_supervised for example in batch)
            loss = nll_per_example(lm, batch).sum() / labels
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise InputError(
                    f"the loss became {losses[-1]} in step {len(losses)}", hint="plan a lower learning rate"
                )
            num_examples += len(batch)
            num_supervised += labels
            num_tokens += sum(len(example.ids) for example in batch)
            seconds = time.perf_counter() - started
            if progress:
                left = seconds / len(losses) * (max_steps - len(losses))
                progress(Step(len(losses), max_steps, losses[-1], num_tokens / seconds, left))
            if len(losses) == max_steps:
                break
    except torch.OutOfMemoryError:
        raise MachineError(
            "out of memory while training", hint="take a smaller --per-device-train-batch-size"
        ) from None
    finally:
        lm.model.eval()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    adapter = plan_adapter(plan, lm.read_factors(), start.r)
    return Trained(adapter, tuple(losses), num_examples, num_supervised, seconds, num_tokens / seconds)
