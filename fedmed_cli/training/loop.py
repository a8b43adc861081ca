"""One site's training: a plain loop, readable from top to bottom."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedmed_cli.adapters.adapter import Adapter, plan_adapter
from fedmed_cli.errors import InputError, MachineError
from fedmed_cli.events import Say, Step
from fedmed_cli.models.fast_path import ATTENTION, LORA, OPERATIONS, fast_path
from fedmed_cli.models.language_model import LanguageModel, is_out_of_memory
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.plan import Plan, Training
from fedmed_cli.training.checkpoints import Arrays, Checkpoints, State
from fedmed_cli.training.options import TrainingOptions
from fedmed_cli.training.passes import passes_of_step
from fedmed_cli.training.private_steps import PrivateSteps

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Trained:
    """The result of a site's steps; `losses` has one value a step, measured before that step's update.

    `kept_step` is the step whose adapter was kept where evaluations selected it, else None: the last.
    `tokens_per_second` is over the steps of this run only, should it have resumed.
    """

    adapter: Adapter
    losses: tuple[float, ...]
    num_examples: int
    num_tokens: int
    tokens_per_second: float
    kept_step: int | None


def batches(encoded: Sequence[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches, epoch after epoch, each example once an epoch, in an order that depends only on the seed.

    Batches are not made of examples of one length: a step on short answers only has a noisy gradient, and
    measurably less comes out of as many steps (docs/training.md). `forward_passes` saves the padding instead.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    while True:
        order = generator.permutation(len(encoded))
        for start in range(0, len(order), batch_size):
            yield [encoded[index] for index in order[start : start + batch_size]]


def order_seed(plan: Plan, site: str, round_number: int) -> int:
    """The seed of a site's data order in a round, the same wherever the round is run."""
    return int(sha256_json([plan.training.seed, site, round_number])[:16], 16)


def learning_rate(training: Training, round_number: int, step: int, max_steps: int) -> float:
    """The learning rate of a step (from 0), by transformers' formulas.

    A linear or cosine decay ends at 0 with the round, or where the plan spans it over `lr_scheduler_rounds`
    rounds, with the last of them. The warm-up is linear from 0, in each round.
    """
    warmup, spanned = training.warmup_steps, training.lr_scheduler_rounds
    factor = min(1.0, step / warmup) if warmup else 1.0
    if training.lr_scheduler_type != "constant" and step >= warmup:
        lead = warmup if spanned == 1 else 0  # in one round the decay begins when the warm-up ends
        done = (round_number - 1) * max_steps * (spanned > 1) + step - lead
        share = min(1.0, done / max(1, spanned * max_steps - lead))
        factor *= 1 - share if training.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * share)) / 2
    return training.learning_rate * factor


def train(
    lm: LanguageModel,
    plan: Plan,
    start: Adapter,
    encoded: Sequence[Encoded],
    max_steps: int,
    options: TrainingOptions = TrainingOptions(),  # frozen
    *,
    seed: int,
    round_number: int = 1,
    private: PrivateSteps | None = None,
    evaluate: Callable[[Adapter], float] | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[Step], None] | None = None,
    say: Say = lambda message: None,
) -> Trained:
    """Train the plan's adapter from `start` for `max_steps` steps of a fresh AdamW, or resume from a checkpoint.

    With `private` the steps are those of DP-SGD, on its units instead of `encoded`. `evaluate` gives the loss by which
    `options.eval_steps` select the step. Nothing of earlier trainings in this process matters. InputError where the
    loss stops being finite, MachineError where memory runs out.
    """
    training = plan.training
    if training.lr_scheduler_type != "constant" and 1 < training.lr_scheduler_rounds < round_number:
        raise InputError(f"round {round_number}: the plan's schedule ends with round {training.lr_scheduler_rounds}")
    torch.manual_seed(seed % 2**63)
    lm.use(start)
    if lm.device.type == "cpu":
        settle_heap()
        if reason := lm.fast_path.declined.get(ATTENTION):
            say(f"examples are padded, and a step takes longer: this model keeps transformers' attention, for {reason}")
    parameters = lm.trainable_parameters()
    anchors = [parameter.detach().clone() for parameter in parameters] if training.fedprox_mu else []
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    state = (checkpoints.load() if checkpoints else None) or State({})
    if state.step:
        _restore(parameters, optimizer, state)
        say(f"resuming from the checkpoint at step {state.step} of {max_steps}")
    first = state.step
    if private is not None:
        operations, max_norm = [name for name in OPERATIONS if name != LORA], math.inf
        steps = _private_steps(lm, parameters, private, options)
    else:
        operations, max_norm = [], training.max_grad_norm
        steps = _plain_steps(
            lm, itertools.islice(batches(encoded, options.examples_per_step, seed), first, None), options
        )
    num_tokens, started = 0, time.perf_counter()
    lm.model.train()
    try:
        with _recomputing(lm, options), fast_path(lm, *operations):
            while not _has_ended(state, options, max_steps):
                rate = learning_rate(training, round_number, state.step, max_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch, loss = next(steps)
                for parameter, anchor in zip(parameters, anchors, strict=False):  # FedProx: mu / 2 |theta - start|^2
                    assert parameter.grad is not None
                    parameter.grad.add_(parameter.detach() - anchor, alpha=training.fedprox_mu)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss became {loss} in step {state.step + 1}", hint="plan a lower learning rate"
                    )
                norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                state.losses.append(loss)
                state.num_examples += len(batch)
                state.num_supervised += sum(example.num_supervised for example in batch)
                num_tokens += sum(len(example.ids) for example in batch)
                if progress:
                    seconds = time.perf_counter() - started
                    left = seconds / (state.step - first) * (max_steps - state.step)
                    progress(Step(state.step, max_steps, loss, rate, norm, num_tokens / seconds, left))
                if options.eval_steps and (state.step % options.eval_steps == 0 or state.step == max_steps):
                    assert evaluate is not None
                    lm.model.eval()
                    # It puts the same factors in place.
                    validation_loss = evaluate(plan_adapter(plan, lm.read_factors(), start.r))
                    lm.model.train()
                    _note_evaluation(state, validation_loss, parameters)
                if checkpoints and (checkpoints.due(state.step) or _has_ended(state, options, max_steps)):
                    checkpoints.save(_captured(parameters, optimizer, state))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            "out of memory while training",
            hint="take --max-batch-tokens, --gradient-checkpointing or a smaller --per-device-train-batch-size "
            "with more --gradient-accumulation-steps; for a large base --load-in-4bit",
        ) from None
    finally:
        lm.model.eval()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    if state.best_step is not None and state.best_step != state.step:
        _put(parameters, state.arrays, "best")
    return Trained(
        adapter=plan_adapter(plan, lm.read_factors(), start.r),
        losses=tuple(state.losses),
        num_examples=state.num_examples,
        num_tokens=state.num_supervised,
        tokens_per_second=num_tokens / seconds,
        kept_step=state.best_step,
    )


def _plain_steps(
    lm: LanguageModel, order: Iterator[list[Encoded]], options: TrainingOptions
) -> Iterator[tuple[list[Encoded], float]]:
    """Each step's examples and loss, once their gradients are on the parameters."""
    for batch in order:
        yield batch, _add_gradients(lm, batch, options)


def _private_steps(
    lm: LanguageModel, parameters: Sequence[torch.nn.Parameter], private: PrivateSteps, options: TrainingOptions
) -> Iterator[tuple[list[Encoded], float]]:
    while True:
        drawn = private.draw()
        loss = private.add_gradients(lm, parameters, drawn, options)
        yield [example for unit in drawn for example in unit], loss


def _add_gradients(lm: LanguageModel, batch: Sequence[Encoded], options: TrainingOptions) -> float:
    """Add the gradients of the mean loss over a step's answer tokens; returns that loss."""
    labels = sum(example.num_supervised for example in batch)
    total = 0.0
    for part in passes_of_step(lm, batch, options):
        loss = nll_per_example(lm, part).sum() / labels
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _note_evaluation(state: State, loss: float, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Note whether the step is the best so far, and its factors if it is."""
    state.evaluations_since += 1
    if state.best_loss is None or loss < state.best_loss:
        state.best_step, state.best_loss, state.evaluations_since = state.step, loss, 0
        state.arrays = {f"best/{i}": _array(parameter) for i, parameter in enumerate(parameters)}


def _has_ended(state: State, options: TrainingOptions, max_steps: int) -> bool:
    patience = options.early_stopping_patience
    return state.step == max_steps or (patience is not None and state.evaluations_since >= patience)


@contextlib.contextmanager
def _recomputing(lm: LanguageModel, options: TrainingOptions) -> Iterator[None]:
    """Recompute activations in the backward pass for the time of the block, where the options say so."""
    if not options.gradient_checkpointing:
        yield
        return
    if not lm.causal.supports_gradient_checkpointing:
        raise InputError("--gradient-checkpointing: transformers has none for this base model")
    lm.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        lm.causal.gradient_checkpointing_disable()


def settle_heap() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    By itself it returns the heap to the system after each step, and large blocks at once; to get them back costs more
    than to fill them. Elsewhere than on glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).numpy().copy()


def _put(parameters: Sequence[torch.nn.Parameter], arrays: Arrays, kind: str) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(torch.from_numpy(arrays[f"{kind}/{i}"]))


def _captured(parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer, state: State) -> State:
    """`state` with the factors and moments of now."""
    arrays = {name: array for name, array in state.arrays.items() if name.startswith("best/")}
    for i, parameter in enumerate(parameters):
        moments = optimizer.state[parameter]
        arrays |= {f"factor/{i}": _array(parameter)}
        arrays |= {f"{name}/{i}": _array(moments[name]) for name in ("exp_avg", "exp_avg_sq")}
    state.arrays = arrays
    return state


def _restore(parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer, state: State) -> None:
    _put(parameters, state.arrays, "factor")
    for i, parameter in enumerate(parameters):
        moments: Mapping[str, Any] = {
            name: torch.from_numpy(state.arrays[f"{name}/{i}"]).to(parameter.device)
            for name in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **moments}


def peak_memory(device: torch.device) -> int | None:
    """The most memory held so far, in bytes: the GPU's for CUDA, else this process's; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # no such counter in Python
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
