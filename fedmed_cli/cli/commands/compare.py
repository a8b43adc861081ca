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
        list[str] | None, typer.Option("--adapter", help="One more adapter: PATH or NAME=PATH (repeatable).")
    ] = None,
    alone: Annotated[
        list[str] | None,
        typer.Option("--alone", help="A site's adapter trained without the federation: SITE=PATH (repeatable)."),
    ] = None,
    all_rounds: Annotated[bool, typer.Option("--all-rounds", help="Every round's global adapter.")] = False,
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled", help="Also measure an adapter trained on all sites' examples together (one machine only)."
        ),
    ] = False,
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
        Path | None, typer.Option("--questions", help=r"Questions, one a line, to answer side by side \[bundled].")
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

    Numbers go to reports/compare.json (with --site to compare-SITE.json, signed, which a hospital may send), answers
    to bundled or given questions to reports/answers.md.

    Example: fedmed compare --all-rounds --generate 20
    """
    if context.invoked_subcommand is not None:
        o.refuse_options_before_subcommand(context)
        return
    from fedmed_cli.cli.commands.report import renew_report
    from fedmed_cli.cli.signing import load_signer, write_signed
    from fedmed_cli.errors import UsageError
    from fedmed_cli.report.write import REPORT_NAME
    from fedmed_cli.trust.keys import signer_for
    from fedmed_cli.workspace.durable import write_file

    screen, place = common.open()
    plan = place.read_plan()
    if site is not None and site not in plan.sites.names:
        raise UsageError(f"--site {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    if key is not None and site is None:
        raise UsageError("--key goes with --site: only what leaves a hospital is signed")
    signer = signer_for(site, plan, load_signer(screen, key, place.root)) if site else None
    with place.lock():
        from fedmed_cli.evaluation import compare as comparison
        from fedmed_cli.evaluation import compared_adapters, mcq_files

        tests = comparison.test_set(place, site, max_eval_samples, screen.say)
        adapters = compared_adapters.workspace_adapters(place, plan, all_rounds, screen.say)
        adapters |= compared_adapters.named_adapters(plan, adapter or [], adapters)
        local_only = compared_adapters.local_only(plan, alone or [], adapters)
        adapters |= {name: one for name, (_, one) in local_only.items()}
        multiple_choice = mcq_files.read_questions(choices, max_eval_samples, screen.say) if choices else None
        open_questions = comparison.read_questions(questions) if answers else []
        pooled_input = None
        if pooled:
            from fedmed_cli.federation.pooled import gather

            pooled_input = gather(place, plan, screen.say)
        if not (adapters or pooled):
            screen.say("there is no adapter yet: only the base model is measured")
        lm = model.load(model.find(plan.base, screen), screen, load_in_4bit)
        if pooled_input is not None:
            from fedmed_cli.cli.progress import step_events
            from fedmed_cli.federation.pooled import pooled_adapter

            with step_events(screen, "pooled") as events:
                adapters[compared_adapters.POOLED] = pooled_adapter(
                    place, plan, lm, pooled_input, screen.say, events.step
                )
        with screen.progress("comparing") as update:
            record = comparison.compare(
                place,
                plan,
                lm,
                adapters,
                tests,
                site=site,
                local_only={name: owner for name, (owner, _) in local_only.items()},
                by_column=by_column or [],
                num_generated=generate,
                max_new_tokens=max_new_tokens,
                multiple_choice=multiple_choice,
                say=screen.say,
                progress=lambda name, done, total: update(done, total, f"{name}, {done}/{total} examples"),
            )
        path = place.reports / (f"compare-{site}.json" if site else "compare.json")
        write_signed(place, path, record, signer)
        lines = [f"wrote {path}" + (f" and {path.name}.sig" if signer else "")]
        if open_questions:
            answering = {"base": None} | {name: one for name, one in adapters.items() if name == "global"}
            screen.say(f"answering {len(open_questions)} questions with {' and '.join(answering)}")
            text = comparison.answers_side_by_side(lm, plan, answering, open_questions, max_new_tokens)
            place.set_aside(place.reports / "answers.md")
            write_file(place.reports / "answers.md", text.encode())
            lines.append(f"wrote {place.reports / 'answers.md'}: generated text, not for clinical use")
        if (place.reports / REPORT_NAME).exists() and (page := renew_report(place, screen)):
            lines.append(f"wrote {page}: with this comparison")
    from fedmed_cli.report.parts import Text
    from fedmed_cli.report.tables.comparison import comparison_parts, verdict

    sentence = verdict(record)
    screen.result(record.to_dict(), *comparison_parts(record, plan), *([Text(sentence)] if sentence else []), *lines)
