"""How long a training takes here, by a few real steps on the plan's base: nothing of them is kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import InputError
from fedmed_cli.federation.doctor.findings import Examined, Forecast, Seen
from fedmed_cli.text import number_of_bytes

if TYPE_CHECKING:
    from fedmed_cli.events import Step
    from fedmed_cli.models.language_model import LanguageModel
    from fedmed_cli.models.prompts import Encoded

MOST_ENCODED = 1000  # examples whose lengths stand for all
TIMED_STEPS = 3  # after one that warms up
MEASURED = 32  # examples
MUCH_MEMORY = 0.9  # of what the machine has


def check_round(examined: Examined) -> Seen:
    """Take a few real steps, and tell from them how long a round takes."""
    from fedmed_cli.models import language_model

    local, request = examined.local, examined.request
    assert local is not None
    began = time.perf_counter()
    lm = language_model.load(local, request.device, load_in_4bit=request.load_in_4bit)
    seconds_to_load = time.perf_counter() - began
    found = _forecast(examined, lm, seconds_to_load)
    examined.forecast = found
    seen = (
        f"about {_duration(found.seconds)}: {found.steps} steps of {found.seconds_per_step:.3g} s, "
        f"{_duration(found.seconds_of_measuring)} of measuring, {_duration(found.seconds_to_start)} to start; "
        f"estimated from {TIMED_STEPS} steps on {found.examples}, with fedmed's operations: {lm.fast_path}"
    )
    if found.peak_memory_bytes is None:
        return "PASS", seen, None
    seen += f"; at most {number_of_bytes(found.peak_memory_bytes)} of memory"
    if found.peak_memory_bytes > MUCH_MEMORY * _total_memory(lm):
        return "WARN", seen, "take --max-batch-tokens or --gradient-checkpointing: other steps may not fit"
    return "PASS", seen, None


def _forecast(examined: Examined, lm: LanguageModel, seconds_to_load: float) -> Forecast:
    from fedmed_cli.training.loop import peak_memory

    plan, settings = examined.agreed, examined.request.settings
    rows, num_train, num_validation = examined.examples, examined.num_train, examined.num_validation
    if not rows:
        rows, num_train, num_validation = _corpus(), 1000, settings.max_eval_samples
    began = time.perf_counter()
    encoded = _encode(examined, lm, rows)
    seconds_an_example = (time.perf_counter() - began) / min(len(rows), MOST_ENCODED)
    length = statistics.fmean(len(tokens.ids) for tokens in encoded)
    steps = settings.steps(plan, num_train)
    seconds_to_set_up, seconds_a_token = _time_steps(examined, lm, encoded)
    tokens_a_step = length * settings.options.examples_per_step
    measuring = _time_measuring(examined, lm, encoded) * length * _num_measured(examined, num_validation, steps)
    start = examined.seconds_to_import + seconds_to_load + examined.seconds_to_read + seconds_to_set_up
    start += seconds_an_example * (num_train + num_validation)
    return Forecast(
        steps=steps,
        seconds=start + steps * tokens_a_step * seconds_a_token + measuring,
        seconds_to_start=start,
        seconds_per_step=tokens_a_step * seconds_a_token,
        seconds_of_measuring=measuring,
        examples="the site's own examples" if examined.examples else "the bundled corpus",
        peak_memory_bytes=peak_memory(lm.device),
    )


def _corpus() -> list[Example]:
    from fedmed_cli.data.examples import read_examples
    from fedmed_cli.data.sources import CORPUS, Source

    return read_examples(Source([CORPUS], limit=MOST_ENCODED))


def _encode(examined: Examined, lm: LanguageModel, rows: Sequence[Example]) -> list[Encoded]:
    """Examples from all over the data as token ids, those that fit, the shortest first."""
    from fedmed_cli.models.prompts import encode

    plan = examined.agreed
    chosen = _spread(rows, min(len(rows), MOST_ENCODED))
    each = [encode(row, plan.prompt, lm.tokenizer, plan.training.max_length) for row in chosen]
    encoded = [tokens for tokens in each if tokens is not None]
    if not encoded:
        raise InputError(f"none of {len(chosen)} examples fits into max_length {plan.training.max_length}")
    return sorted(encoded, key=lambda tokens: len(tokens.ids))


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """So many of the items, evenly from first to last."""
    return [items[int((i + 0.5) * len(items) / number)] for i in range(number)]


def _time_steps(examined: Examined, lm: LanguageModel, encoded: Sequence[Encoded]) -> tuple[float, float]:
    """Seconds until the first step begins, and for each token of a step once the first one is done."""
    from fedmed_cli.training.loop import train
    from fedmed_cli.training.private_steps import PrivateSteps

    plan, settings = examined.agreed, examined.request.settings
    times: list[tuple[float, Step]] = []
    number = TIMED_STEPS + 1
    chosen = _spread(encoded, number * settings.options.examples_per_step)
    private = None
    if settings.privacy is not None:
        private = PrivateSteps(tuple((tokens,) for tokens in chosen), 1 / number, 1.0, settings.privacy.max_grad_norm)
    began = time.perf_counter()
    train(
        lm,
        plan,
        _start(examined),
        chosen,
        number,
        replace(settings.options, eval_steps=None, early_stopping_patience=None),
        seed=0,
        private=private,
        progress=lambda step: times.append((time.perf_counter(), step)),
    )
    (first, step), (last, end) = times[0], times[-1]
    seconds = step.seconds_left / TIMED_STEPS  # of the first step alone
    total = end.tokens_per_second * (last - first + seconds) - step.tokens_per_second * seconds
    if total < 1:
        raise InputError("no example was drawn in these steps", hint="run it again, with a larger batch")
    return max(0.0, first - seconds - began), (last - first) / total


def _start(examined: Examined) -> Adapter:
    """The adapter that round 1 starts from, at the site's rank: as large as that of any other round."""
    from fedmed_cli.adapters.archive import starting_adapter
    from fedmed_cli.adapters.low_rank import cut_to_rank

    plan, site = examined.agreed, examined.site
    start = starting_adapter(examined.workspace, plan, 1)
    return cut_to_rank(start, plan.rank_of(site)) if site is not None else start


def _time_measuring(examined: Examined, lm: LanguageModel, encoded: Sequence[Encoded]) -> float:
    """Seconds for each token that is measured, the first batch aside."""
    from fedmed_cli.evaluation import measuring

    chosen = _spread(encoded, MEASURED)
    times: list[tuple[float, int]] = []
    began = time.perf_counter()
    measuring.measure(lm, _start(examined), chosen, lambda done, total: times.append((time.perf_counter(), done)))
    lengths = [len(tokens.ids) for tokens in chosen]  # sorted, as they are measured
    if len(times) == 1:
        return (times[0][0] - began) / sum(lengths)
    (first, done), (last, _) = times[0], times[-1]
    return (last - first) / sum(lengths[done:])


def _num_measured(examined: Examined, num_validation: int, steps: int) -> int:
    """How many examples a round measures in all: before, after, and where steps are chosen by it, in between."""
    settings = examined.request.settings
    every = settings.options.eval_steps
    share = num_validation // 2 if every else num_validation
    at_once = min(share, settings.max_eval_samples)
    return at_once * (2 + (math.ceil(steps / every) if every else 0))


def _total_memory(lm: LanguageModel) -> float:
    if lm.device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(lm.device)[1])
    import psutil

    return float(psutil.virtual_memory().total)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.3g} minutes" if seconds < 5400 else f"{seconds / 3600:.3g} hours"
