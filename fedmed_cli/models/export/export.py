"""Exporting an adapter: written, loaded by who will use it, compared with PEFT, and only then there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedmed_cli.adapters.card import code, code_block
from fedmed_cli.adapters.folder import AdapterFolder, PersonalFolder
from fedmed_cli.data import corpus
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import CombineError
from fedmed_cli.events import Say
from fedmed_cli.models.export.forms import FORMS, Form, Source, Values, log_probabilities, version_of
from fedmed_cli.models.prompts import Encoded, encode
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.digests import sha256_file
from fedmed_cli.records.export import Comparison, Export
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import utc_now
from fedmed_cli.workspace.durable import new_folder, private_files, write_new

NUM_ANSWERS = 20
MAX_TOKENS = 32  # of each answer
LEAST_EFFECT = 1e-3  # nats a token; below it nothing could be told from rounding
# The least squares slope of the export's effect over the adapter's is 1, but for rounding, which it averages out: it
# may be off by this and three standard errors, and must be three above 0.
SLOPE_OFF, STANDARD_ERRORS = 0.3, 3
# How far the effect may be off: a share of itself, and what rounding does to the consumer's base, or at least this.
SHARE, ROUNDING = 0.5, 0.02


def export(source: Source, form_name: str, folder: AdapterFolder, plan: Plan, target: Path, say: Say) -> Export:
    """Write `target`, a new folder, in one of FORMS. ConflictError where it exists already.

    CombineError where the adapter changes no answer, or its consumer gives others than PEFT: then nothing is left. A
    private adapter stays one: its files are for this user alone, and say so.
    """
    is_private = isinstance(folder, PersonalFolder)
    site = None if folder.record is None or isinstance(folder.record, Aggregate) else folder.record.site
    form = FORMS[form_name]
    if source.lm.device.type == "cpu":
        source.lm.model.float()  # the reference
    items = _answers(source, plan)
    with private_files() if is_private else contextlib.nullcontext(), new_folder(target) as staged:
        form.write(staged, source)
        (staged / "README.md").write_text(_readme(source, form, plan, site if is_private else None), encoding="utf-8")
        say(f"trying {form_name} with {version_of(form)} on {len(items)} answers")
        comparison = compare(source, form, staged, items)
        record = Export(
            form=form_name,
            adapter=source.adapter.digest,
            base_fingerprint=plan.base.fingerprint,
            plan=plan.digest,
            record=folder.record_digest if folder.record else None,
            round=folder.record.round if folder.record else None,
            site=site,
            files={path.name: sha256_file(path) for path in sorted(staged.iterdir())},
            comparison=comparison,
            checked=form.checked,
            not_checked=form.not_checked,
            run={"created": utc_now(), "consumer": version_of(form)},
        )
        write_new(staged / "export.json", record.to_bytes())
    return record


def _answers(source: Source, plan: Plan) -> list[Encoded]:
    """The beginnings of the first bundled answers, as the plan's prompt asks for them."""
    items = []
    for row in corpus.examples():
        example = Example(row["id"], row["question"], row["answer"])
        encoded = encode(example, plan.prompt, source.lm.tokenizer, plan.training.max_length)
        if encoded is not None and encoded.num_supervised > 1:
            items.append(replace(encoded, ids=encoded.ids[: encoded.num_prompt + MAX_TOKENS]))
        if len(items) == NUM_ANSWERS:
            return items
    raise CombineError("the plan's prompt leaves no room for answers to compare")


def compare(source: Source, form: Form, folder: Path, items: Sequence[Encoded]) -> Comparison:
    """Hold an export against PEFT. CombineError where it differs by more than rounding, or changes nothing."""
    source.lm.use(None)
    base = log_probabilities(source.lm.model, items)
    source.lm.use(source.adapter)
    expected = log_probabilities(source.lm.model, items)
    if (effect := mean_size(expected - base)) < LEAST_EFFECT:
        raise CombineError(f"the adapter changes the answers by {effect:.1e} nats a token: there is nothing to export")
    found, plain = form.measure(folder, source, items)
    result = Comparison(
        num_answers=len(items),
        num_tokens=len(expected),
        reference_dtype=str(next(source.lm.model.parameters()).dtype).removeprefix("torch."),
        mean_difference=float(np.mean(found - expected)),
        largest_difference=float(np.max(np.abs(found - expected))),
        effect=effect,
        effect_found=mean_size(found - plain),
        slope=float((found - plain) @ (expected - base) / np.sum((expected - base) ** 2)),
    )
    noise = STANDARD_ERRORS * _standard_error(found - plain, expected - base, result.slope)
    is_alike = abs(result.slope - 1) <= SLOPE_OFF + noise and result.slope > noise
    error = mean_size((found - plain) - (expected - base))
    rounding = max(ROUNDING, mean_size(plain - base))
    if not is_alike or not error < SHARE * effect + rounding:
        raise CombineError(
            f"the export does not do what the adapter does, and was not kept: it changes a token by "
            f"{result.effect_found:.4f} nats, the adapter by {effect:.4f}, at a slope of {result.slope:.2f}"
        )
    return result


def _standard_error(found: Values, expected: Values, slope: float) -> float:
    """Of a least squares slope through 0."""
    return float(np.std(found - slope * expected) / np.sqrt(np.sum(expected**2)))


def mean_size(values: Values) -> float:
    return float(np.mean(np.abs(values)))


def _readme(source: Source, form: Form, plan: Plan, private_site: str | None = None) -> str:
    """The export's README.md; `private_site` is the hospital whose private adapter it is, if it is one."""
    private = f" It is private to site {private_site} and **does not leave the hospital**." if private_site else ""
    lines = [
        f"# {form.what[0].upper()}{form.what[1:]}",
        "",
        f"Exported by fedmed from adapter `{source.adapter.digest}` of base model {code(plan.base.name)}.{private}",
        "Research evaluation, not for clinical use: answers can be wrong.",
        "",
        "```sh",
        form.use(source),
        "```",
        "",
        f"Checked: {form.checked}. Not checked: {form.not_checked}. `export.json` has the figures.",
        "",
        "Only fedmed's own chat and server put guardrails before the model. A question is asked as",
        "",
        code_block(plan.prompt.user),
    ]
    if plan.prompt.system:
        lines += ["", "after the system text", "", code_block(plan.prompt.system)]
    return "\n".join(lines) + "\n"
