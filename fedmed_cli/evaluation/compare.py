"""Adapters compared on the same examples with the base loaded once: losses with paired intervals, and answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmed_cli import intervals
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.data import examples
from fedmed_cli.data.disclosure import check_not_group, list_columns, may_leave
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.evaluation import generated, mcq, measuring
from fedmed_cli.evaluation.compared_adapters import worst_sites
from fedmed_cli.evaluation.mcq_files import QuestionSet
from fedmed_cli.events import Say, StageProgress
from fedmed_cli.intervals import Losses, paired_interval, summarize
from fedmed_cli.models import prompts
from fedmed_cli.models.batch_generation import answer_many
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.checks import BASE, BOUNDS, GLOBAL
from fedmed_cli.records.comparison import Comparison, Score, Shares, Tally
from fedmed_cli.records.measures import OVERALL, Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

MAX_VALUES = 30
NO_VALUE, OTHER = "none", "other"

QUESTIONS = (
    "What are the warning signs of a stroke?",
    "How do doctors treat high blood pressure?",
    "What can I do to lower my risk of type 2 diabetes?",
)


@dataclass(frozen=True)
class TestSet:
    """What is compared on: examples nobody trained on or chose weights with, and where they lie."""

    examples: list[Example]
    name: str
    group_by: str | None
    has_patients: bool

    def check_columns(self, columns: Sequence[str]) -> None:
        """UsageError where one is the group column, whose values may name patients."""
        for column in columns if self.has_patients else ():
            check_not_group("--by-column", column, self.group_by)


def test_set(workspace: Workspace, site: str | None, limit: int, say: Say) -> TestSet:
    """The workspace's test examples (`data/test.jsonl`), or with `site` that hospital's own."""
    path = workspace.site_data(site) / "test.jsonl" if site else workspace.data / "test.jsonl"
    name = workspace.relative(path)
    if examples.find_set(path) is None:
        raise InputError(
            f"{name}: there are no test examples",
            hint="'fedmed split' makes data/test.jsonl; 'fedmed train-local --data FILE' makes data/SITE/test.jsonl "
            "for 'fedmed compare --site SITE'",
        )
    rows = examples.read_jsonl(path)
    group_by = workspace.group_column(site)
    sample = measuring.sample(rows, limit, group_by, examples.home_site)
    if len(sample) < len(rows):
        say(f"measuring on {len(sample)} of {len(rows)} examples of {name} (--max-eval-samples)")
    return TestSet(sample, name, group_by, workspace.has_patients(site))


def site_parts(rows: Sequence[Example]) -> dict[str, list[int]]:
    """Indices of each site's share, where the examples name their site."""
    sites = sorted({examples.home_site(row) for row in rows} - {""})
    return {site: [i for i, row in enumerate(rows) if examples.home_site(row) == site] for site in sites}


def column_parts(rows: Sequence[Example], column: str, groups: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the examples with each value of a column, for a record that leaves the house.

    Values that may not leave are pooled as `other`, as are all but the 30 most frequent ones. `groups` names each
    example's group. InputError where no row has the column.
    """
    if not any(column in row.columns for row in rows):
        names = list_columns(name for row in rows for name in row.columns)
        raise InputError(f"--by-column {column}: the test examples have no such column, found {names}")
    by_value: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_value.setdefault(row.columns.get(column) or NO_VALUE, []).append(i)
    frequent = sorted(by_value, key=lambda value: (-len(by_value[value]), value))[:MAX_VALUES]
    parts: dict[str, list[int]] = {}
    for value, indices in by_value.items():
        is_shown = value in frequent and may_leave(value, len({groups[i] for i in indices}))
        parts.setdefault(value if is_shown else OTHER, []).extend(indices)
    return {value: sorted(parts[value]) for value in sorted(parts)}


def measure_all(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapters: Mapping[str, Adapter],
    items: measuring.EvaluationSet,
    progress: StageProgress | None = None,
) -> dict[str, Losses]:
    """Losses of the base and of every adapter on the same examples.

    CombineError where an adapter that adds something leaves every single loss as the base's: it was not applied.
    """
    losses: dict[str, Losses] = {}
    for name, adapter in {BASE: None, **adapters}.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        losses[name] = measuring.measure_cached(workspace, plan, lm, adapter, items, report)
        adds = adapter is not None and any(b.any() for _, b in adapter.factors.values())
        if adds and np.array_equal(losses[name].nll, losses[BASE].nll):
            raise CombineError(
                f"adapter {name} was not applied: its B is not 0, yet its losses on all {len(items.examples)} examples "
                "are exactly the base's",
                hint=f"its values may be too small for {lm.dtype}; 'fedmed inspect-adapter' shows them",
            )
    return losses


def compare(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapters: Mapping[str, Adapter],
    tests: TestSet,
    *,
    site: str | None = None,
    local_only: Mapping[str, str] | None = None,
    personal: Mapping[str, str] | None = None,
    by_column: Sequence[str] = (),
    num_generated: int = 0,
    max_new_tokens: int = 64,
    multiple_choice: QuestionSet | None = None,
    say: Say = lambda message: None,
    progress: StageProgress | None = None,
) -> Comparison:
    """Measure the base and every adapter on the same examples; each difference is paired by example.

    `site` is the hospital whose own examples these are; `local_only` names the site of each adapter that was
    trained without the federation, `personal` that of each private one. Answers are generated to `num_generated` of the
    questions.
    """
    items = measuring.prepare(lm, plan, tests.examples, tests.group_by)
    shares = site_parts(items.examples)
    # Without patients a value counts by its rows, not by its groups.
    groups = items.groups if tests.has_patients else [str(i) for i in range(len(items.examples))]
    columns = {column: column_parts(items.examples, column, groups) for column in by_column}
    losses = measure_all(workspace, plan, lm, adapters, items, progress)
    paired = Paired(losses, items.groups)
    parts = {OVERALL: list(range(len(items.examples))), **shares}
    # Part by part, for all adapters share the resamples of a part.
    by_part = {part: {name: paired.score(name, indices) for name in losses} for part, indices in parts.items()}
    scores = {name: {part: by_part[part][name] for part in parts} for name in losses}
    overlap = accuracy = None
    if sample := measuring.sample(items.examples, num_generated, tests.group_by, examples.home_site):
        overlap = generated.measure(plan, lm, adapters, sample, tests.group_by, max_new_tokens, progress=progress)
    if multiple_choice is not None:
        accuracy = mcq.measure(workspace, plan, lm, adapters, multiple_choice, say=say, progress=progress)
    return Comparison(
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        examples=tests.name,
        examples_digest=items.digest,
        num_resamples=intervals.NUM_RESAMPLES,
        seed=intervals.SEED,
        adapters={BASE: None} | {name: adapter.digest for name, adapter in adapters.items()},
        scores=scores,
        choices=accuracy,
        generated=overlap,
        columns={
            column: {value: {name: paired.score(name, indices) for name in losses} for value, indices in values.items()}
            for column, values in columns.items()
        },
        num_skipped=items.num_skipped,
        num_truncated=items.num_truncated,
        on_other_sites=paired.on_other_sites(
            shares, {name: name for name in shares} | dict(local_only or {}) | dict(personal or {})
        ),
        joined=paired.joined(shares or ({site: parts[OVERALL]} if site else {}), local_only or {}, personal or {}),
        recovered=paired.recovered(local_only or ()),
        round=workspace.newest_round() or None,
        site=site,
        worst_sites=worst_sites({name: {part: scores[name][part] for part in shares} for name in losses}),
        run=measuring.environment(lm),
    )


@dataclass(frozen=True)
class Paired:
    """Losses of several adapters on the same examples, and what can be said of their differences."""

    losses: Mapping[str, Losses]
    groups: Sequence[str]

    def score(self, name: str, indices: Sequence[int]) -> Score:
        """One adapter on the examples at `indices`."""
        loss = summarize(self.losses[name].take(indices), [self.groups[i] for i in indices])
        return Score(
            loss=loss.mean,
            perplexity=math.exp(min(loss.mean, 230)),
            standard_error=loss.standard_error,
            num_examples=loss.num_examples,
            num_groups=loss.num_groups,
            num_tokens=loss.num_tokens,
            against_base=self.difference(name, BASE, indices),
            against_global=self.difference(name, GLOBAL, indices),
            tally=self.tally(name, indices),
        )

    def difference(self, name: str, other: str, indices: Sequence[int]) -> Interval | None:
        """Loss of `name` minus that of `other`.

        None where they are one, `other` was not measured, or there is one group, which gives no interval.
        """
        groups = [self.groups[i] for i in indices]
        if other == name or other not in self.losses or len(set(groups)) < 2:
            return None
        return paired_interval(self.losses[name].take(indices), self.losses[other].take(indices), groups)

    def tally(self, name: str, indices: Sequence[int]) -> Tally | None:
        """On how many examples the loss is below, equal to or above the base's."""
        if name == BASE:
            return None
        signs = np.sign(self.losses[name].take(indices).nll - self.losses[BASE].take(indices).nll)
        return Tally(int(np.sum(signs < 0)), int(np.sum(signs == 0)), int(np.sum(signs > 0)))

    def on_other_sites(self, shares: Mapping[str, Sequence[int]], sites: Mapping[str, str]) -> dict[str, Interval]:
        """By adapter of one site (`sites`): loss of the global adapter minus its own, on all other sites' examples."""
        differences = {}
        for name, site in sites.items():
            others = sorted(i for other, indices in shares.items() if other != site for i in indices)
            if name in self.losses and GLOBAL in self.losses and others:
                differences[name] = self.difference(GLOBAL, name, others)
        return {name: one for name, one in differences.items() if one is not None}

    def joined(
        self, shares: Mapping[str, Sequence[int]], alone: Mapping[str, str], personal: Mapping[str, str]
    ) -> dict[str, Interval]:
        """By hospital that also trained alone: what it uses now minus that, on its own share of the examples.

        It uses its private adapter where it has one, else the global one. `alone` and `personal` name the site of
        an adapter.
        """
        private = {site: name for name, site in personal.items()}
        differences = {
            site: self.difference(private.get(site, GLOBAL), name, shares[site])
            for name, site in alone.items()
            if site in shares and private.get(site, GLOBAL) in self.losses
        }
        return {site: one for site, one in sorted(differences.items()) if one is not None}

    def recovered(self, alone: Collection[str]) -> dict[str, Shares]:
        """By upper bound that was measured: what share of its gain the global adapter reaches.

        `alone` names the adapters of hospitals that trained alone. The best of them is the best on these very
        examples, which flatters it.
        """
        if GLOBAL not in self.losses:
            return {}
        starts = {"base": self.losses[BASE]}
        if alone:
            lone = [self.losses[name] for name in alone]
            starts["best_alone"] = min(lone, key=lambda losses: losses.mean)
            starts["mean_alone"] = Losses(np.mean([losses.nll for losses in lone], axis=0), lone[0].num_tokens)
        found = {}
        for bound in BOUNDS:
            if bound in self.losses:
                ends = self.losses[GLOBAL], self.losses[bound], self.groups
                found[bound] = Shares(**{name: intervals.share_of_gain(start, *ends) for name, start in starts.items()})
        return found


def read_questions(path: Path | None) -> list[str]:
    """Questions, one a line, or the bundled ones."""
    if path is None:
        return list(QUESTIONS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: is not a readable UTF-8 text file") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise InputError(f"{path}: holds no question (one a line)")
    return questions


def answers_side_by_side(
    lm: LanguageModel, plan: Plan, adapters: Mapping[str, Adapter | None], questions: Sequence[str], max_new_tokens: int
) -> str:
    """Markdown with each question's answers by each adapter. Only from given or bundled questions."""
    conversations = [prompts.prompt_messages(plan.prompt, question) for question in questions]
    answers = {}
    for name, adapter in adapters.items():
        lm.use(adapter)
        answers[name] = [one.text for one in answer_many(lm, conversations, max_new_tokens)]
    lines = [
        "# Answers side by side",
        "",
        "Generated text, greedy decoding. Research evaluation, not for clinical use: answers can be wrong.",
        f"Base model: {plan.base.name}. Each answer ends after at most {max_new_tokens} tokens.",
    ]
    for i, question in enumerate(questions):
        lines += ["", f"## {question}"]
        for name in adapters:
            lines += ["", f"**{name}**", "", *(f"> {line}" for line in (answers[name][i] or "(no answer)").split("\n"))]
    return "\n".join(lines) + "\n"
