"""`fedmed compare`: did federating help, whom, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def compare(
    context: typer.Context,
    site: Annotated[
        str | None,
        typer.Option("--site", help="Inside a hospital: measure on its own test examples (data/SITE/test.jsonl)."),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="An additional adapter: PATH or NAME=PATH (repeatable).")
    ] = None,
    alone: Annotated[
        list[str] | None,
        typer.Option("--alone", help="A site's adapter trained without the federation: SITE=PATH (repeatable)."),
    ] = None,
    all_rounds: Annotated[
        bool, typer.Option("--all-rounds", help="Also measure the global adapters of earlier rounds.")
    ] = False,
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled", help="Also measure an adapter trained on all sites' examples together (one machine only)."
        ),
    ] = False,
    pooled_parallel: Annotated[
        bool,
        typer.Option(
            "--pooled-parallel", help="The same, with as many steps as one site takes, each on examples of all sites."
        ),
    ] = False,
    pooled_lr: Annotated[
        float | None,
        typer.Option("--pooled-lr", metavar="RATE", help=r"Learning rate of the pooled trainings \[the plan's]."),
    ] = None,
    by_column: Annotated[
        list[str] | None, typer.Option("--by-column", help="Also report each value of this column (repeatable).")
    ] = None,
    max_eval_samples: Annotated[int, typer.Option("--max-eval-samples", min=2, help="Examples to measure on.")] = 600,
    choices: Annotated[
        Path | None, typer.Option("--choices", help="Multiple-choice questions: a MedMCQA, MedQA or PubMedQA file.")
    ] = None,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Number of test questions to answer, for ROUGE-L and token F1.")
    ] = 0,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help=r"A file of questions, one per line, to answer side by side \[bundled]."),
    ] = None,
    answers: Annotated[bool, typer.Option("--answers/--no-answers", help="Write answers side by side.")] = True,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum tokens of a generated answer.")
    ] = 64,
    load_in_4bit: o.FourBitOption = False,
    key: o.KeyOption = None,
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Measure base, sites' and global adapters on examples that nobody trained on or chose weights with.

    Numbers go to reports/compare.json, or with --site to compare-SITE.json, which is signed and may leave the
    hospital. Answers to bundled or given questions go to reports/answers.md.

    Example: fedmed compare --all-rounds --generate 20
    """
    if context.invoked_subcommand is not None:
        o.refuse_options_before_subcommand(context)
        return
    from fedmed_cli.cli.commands.report import renew_report
    from fedmed_cli.cli.progress import events_on
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.errors import BusyError, UsageError
    from fedmed_cli.federation import steps
    from fedmed_cli.reporting.write import REPORT_NAME
    from fedmed_cli.trust.keys import signer_for

    screen, place = common.open()
    plan = place.read_plan()
    if key is not None and site is None:
        raise UsageError("--key goes with --site: only what leaves a hospital is signed")
    signer = signer_for(site, plan, load_signer(screen, key, place.root)) if site else None
    options = steps.CompareOptions(
        adapters=adapter or (),
        alone=alone or (),
        all_rounds=all_rounds,
        pooled=pooled,
        pooled_parallel=pooled_parallel,
        pooled_lr=pooled_lr,
        by_column=by_column or (),
        max_eval_samples=max_eval_samples,
        choices=choices,
        generate=generate,
        questions=questions,
        answers=answers,
        max_new_tokens=max_new_tokens,
    )
    with screen.progress("comparing") as update:
        result = steps.compare(
            place,
            options,
            site=site,
            base=model.base_model(screen, load_in_4bit),
            signer=signer,
            events=events_on(screen, update),
            progress=lambda name, done, total: update(done, total, f"{name}, {done}/{total} examples"),
        )
    record = result.record
    lines = [f"wrote {result.path}"]
    if result.answers_path:
        lines.append(f"wrote {result.answers_path}: generated text, not for clinical use")
    if (place.reports / REPORT_NAME).exists():
        try:
            with place.lock():
                if page := renew_report(place, screen):
                    lines.append(f"updated {page} with this comparison")
        except BusyError as error:
            screen.say(f"no report is written: {error.message}")
    from fedmed_cli.reporting.parts import Text
    from fedmed_cli.reporting.tables.comparison import comparison_parts, verdict

    sentence = verdict(record)
    screen.result(record.to_dict(), *comparison_parts(record, plan), *([Text(sentence)] if sentence else []), *lines)
