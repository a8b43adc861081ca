"""Adapters compared on the same examples with the base loaded once: losses with paired intervals, and answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_cli import adapters, evaluation, examples, intervals
from fedmed_cli.adapters import Adapter
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.examples import Example
from fedmed_cli.generation import answer_batch
from fedmed_cli.intervals import Losses, paired_interval, summarize
from fedmed_cli.models import LanguageModel
from fedmed_cli.records import OVERALL, Comparison, Interval, Plan, Score
from fedmed_cli.workspace import Workspace, utc_now

DEFAULT_TEST_SAMPLES = 600

QUESTIONS = (
    "What are the warning signs of a stroke?",
    "How do doctors treat high blood pressure?",
    "What can I do to lower my risk of type 2 diabetes?",
)

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TestSet:
    """What is compared on: examples nobody trained on or chose weights with, and where they lie."""

    examples: list[Example]
    name: str
    group_by: str | None


def test_set(workspace: Workspace, site: str | None, limit: int, say: Say) -> TestSet:
    """The workspace's test examples (`data/test.jsonl`), or with `site` that hospital's own."""
    path = workspace.site_data(site) / "test.jsonl" if site else workspace.data / "test.jsonl"
    name = workspace.relative(path)
    if not path.exists():
        raise InputError(
            f"{name}: there are no test examples",
            hint="'fedmed split' makes data/test.jsonl; 'fedmed train-local --data FILE' makes data/SITE/test.jsonl "
            "for 'fedmed compare --site SITE'",
        )
    rows = examples.read_jsonl(path)
    group_by = workspace.group_column(site)
    chosen = evaluation.choose(rows, limit, group_by, examples.home_site)
    if len(chosen) < len(rows):
        say(f"measuring on {len(chosen)} of {len(rows)} examples of {name} (--max-eval-samples)")
    return TestSet(chosen, name, group_by)


def parts_of(items: evaluation.EvaluationSet) -> dict[str, list[int]]:
    """Indices of all examples, and of each site's share where the examples name their site."""
    parts = {OVERALL: list(range(len(items.examples)))}
    sites = sorted({examples.home_site(example) for example in items.examples} - {""})
    for site in sites:
        parts[site] = [i for i, example in enumerate(items.examples) if examples.home_site(example) == site]
    return parts


def workspace_adapters(workspace: Workspace, plan: Plan, all_rounds: bool = False) -> dict[str, Adapter]:
    """The adapters to compare by name: each site's of the newest round, and the newest global one (or all).

    Before the first round it is what lies in the mailbox.
    """
    newest = workspace.newest_round()
    home = workspace.round(newest) if newest else workspace.adapters
    found = {
        site: adapters.read_folder(home / site, plan).adapter for site in plan.sites.names if (home / site).is_dir()
    }
    for number in range(1 if all_rounds else max(newest, 1), newest + 1):
        name = "global" if number == newest else f"global-{number}"
        found[name] = adapters.read_global(workspace.global_adapter(number), plan).adapter
    return found


def named_adapters(plan: Plan, given: Sequence[str], taken: set[str]) -> dict[str, Adapter]:
    """Adapters given as PATH or NAME=PATH; UsageError where a name is taken."""
    found: dict[str, Adapter] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name, text
        if name == "base" or name in taken or name in found:
            raise UsageError(f"--adapter {text}: the name {name!r} is taken", hint="give another: --adapter NAME=PATH")
        found[name] = adapters.read_folder(Path(path), plan).adapter
    return found


def compare(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    chosen: Mapping[str, Adapter],
    tests: TestSet,
    *,
    num_resamples: int = intervals.NUM_RESAMPLES,
    progress: Progress | None = None,
) -> Comparison:
    """Measure the base and every adapter on the same examples; each difference is paired by example."""
    items = evaluation.prepare(lm, plan, tests.examples, tests.group_by)
    everything: dict[str, Adapter | None] = {"base": None, **chosen}
    losses: dict[str, Losses] = {}
    for name, adapter in everything.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        losses[name] = evaluation.measure_cached(workspace, plan, lm, adapter, items, report)
    scores = {
        name: {
            part: _score(name, losses, indices, items.groups, num_resamples)
            for part, indices in parts_of(items).items()
        }
        for name in everything
    }
    return Comparison(
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        examples=tests.name,
        examples_digest=items.digest,
        num_resamples=num_resamples,
        seed=0,
        adapters={name: adapter.digest if adapter else None for name, adapter in everything.items()},
        scores=scores,
        run=lm.environment() | {"created": utc_now()},
    )


def _score(
    name: str, losses: Mapping[str, Losses], indices: Sequence[int], groups: Sequence[str], num_resamples: int
) -> Score:
    own = losses[name].take(indices)
    own_groups = [groups[i] for i in indices]
    loss = summarize(own, own_groups)

    def against(other: str) -> Interval | None:
        if other == name or other not in losses:
            return None
        return paired_interval(own, losses[other].take(indices), own_groups, num_resamples)

    return Score(
        loss=loss.mean,
        perplexity=math.exp(min(loss.mean, 700)),
        standard_error=loss.standard_error,
        num_examples=loss.num_examples,
        num_groups=loss.num_groups,
        num_tokens=loss.num_tokens,
        against_base=against("base"),
        against_global=against("global"),
    )


def read_questions(path: Path | None) -> list[str]:
    """Questions, one a line, or the bundled ones."""
    if path is None:
        return list(QUESTIONS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: is no readable UTF-8 text file") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise InputError(f"{path}: holds no question (one a line)")
    return questions


def answers_side_by_side(
    lm: LanguageModel, plan: Plan, chosen: Mapping[str, Adapter | None], questions: Sequence[str], max_new_tokens: int
) -> str:
    """Markdown with each question's answers by each adapter. Only from given or bundled questions."""
    conversations = [examples.prompt_messages(plan.prompt, question) for question in questions]
    answers = {}
    for name, adapter in chosen.items():
        lm.use(adapter)
        answers[name] = answer_batch(lm, conversations, max_new_tokens)
    lines = [
        "# Answers side by side",
        "",
        "Generated text, greedy decoding. Research evaluation, not for clinical use: answers can be wrong.",
        f"Base model: {plan.base.name}. Each answer ends after at most {max_new_tokens} tokens.",
    ]
    for i, question in enumerate(questions):
        lines += ["", f"## {question}"]
        for name in chosen:
            lines += ["", f"**{name}**", "", answers[name][i] or "(no answer)"]
    return "\n".join(lines) + "\n"
