"""`fedmed compare`: did federating help, whom, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def compare(
    files: Annotated[list[Path] | None, typer.Argument(help="With --merge: the hospitals' files.")] = None,
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
    scores: Annotated[
        bool,
        typer.Option(
            "--scores", help="With --site: score all of adapters/ on its validation examples, for --weights crosseval."
        ),
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the hospitals' reports/compare-SITE.json into one matrix.")
    ] = False,
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
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Measure base, sites' and global adapters on examples that nobody trained on or chose weights with.

    Numbers go to reports/compare.json (with --site to compare-SITE.json, which a hospital may send); answers to
    bundled or given questions to reports/answers.md; what --merge makes of the hospitals' files to reports/matrix.json.

    Example: fedmed compare --all-rounds --generate 20
    """
    from fedmed_cli.cli.commands.report import renew_report
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.durable import write_file
    from fedmed_cli.errors import UsageError
    from fedmed_cli.models import bases
    from fedmed_cli.report import REPORT_NAME
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    given: dict[str, object] = {
        "--adapter": adapter,
        "--alone": alone,
        "--all-rounds": all_rounds,
        "--by-column": by_column,
        "--choices": choices,
        "--generate": generate,
        "--pooled": pooled,
        "--questions": questions,
    }
    if merge or scores:
        given |= {"--load-in-4bit": load_in_4bit, "--no-answers": not answers, "--max-new-tokens": max_new_tokens != 64}
        if merge:
            given |= {"--scores": scores, "--site": site, "--max-eval-samples": max_eval_samples != 600}
            given |= {"--base": base, "--base-wheel": base_wheel, "--device": device != "auto"}
        else:
            given |= {"FILE": files}
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(f"{', '.join(unused)}: no use with {'--merge' if merge else '--scores'}")
    elif files:
        raise UsageError(f"{files[0]}: files are given with --merge")
    if merge:
        from fedmed_cli.cli.commands.compare_merge import write_matrix

        write_matrix(screen, place, plan, files or [])
        return
    if scores:
        from fedmed_cli.cli.commands.compare_scores import write_scores

        write_scores(screen, place, plan, site, max_eval_samples, device, base, base_wheel)
        return
    if site is not None and site not in plan.sites.names:
        raise UsageError(f"--site {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    with place.lock():
        from fedmed_cli.evaluation import compare as comparison
        from fedmed_cli.evaluation import compared_adapters, mcq_files

        tests = comparison.test_set(place, site, max_eval_samples, screen.say)
        tests.check_columns(by_column or [])
        chosen = compared_adapters.workspace_adapters(place, plan, all_rounds, screen.say)
        chosen |= compared_adapters.named_adapters(plan, adapter or [], chosen)
        local_only = compared_adapters.local_only(plan, alone or [], chosen)
        chosen |= {name: one for name, (_, one) in local_only.items()}
        picked = mcq_files.read_questions(choices, max_eval_samples, screen.say) if choices else None
        asked = comparison.read_questions(questions) if answers else []
        pooled_input = None
        if pooled:
            from fedmed_cli.federation.pooled import gather

            pooled_input = gather(place, plan, screen.say)
        if not (chosen or pooled):
            screen.say("there is no adapter yet: only the base model is measured")
        local = bases.find_for_plan(plan.base, base, base_wheel, screen.say)

        from fedmed_cli.cli.tables.comparison import comparison_lines
        from fedmed_cli.models import language_model

        lm = language_model.load(local, device, screen.say, screen.detail, load_in_4bit=load_in_4bit)
        if pooled_input is not None:
            from fedmed_cli.cli.progress import step_events
            from fedmed_cli.federation.pooled import pooled_adapter

            with step_events(screen, "pooled") as events:
                chosen[compared_adapters.POOLED] = pooled_adapter(
                    place, plan, lm, pooled_input, screen.say, events.step
                )
        with screen.progress("comparing") as update:

            def report(name: str, done: int, total: int) -> None:
                update(done, total, f"{name}, {done}/{total} examples")

            record = comparison.compare(
                place,
                plan,
                lm,
                chosen,
                tests,
                site=site,
                homes={name: home for name, (home, _) in local_only.items()},
                by_column=by_column or [],
                num_generated=generate,
                max_new_tokens=max_new_tokens,
                choices=picked,
                say=screen.say,
                progress=report,
            )
        name = f"compare-{site}.json" if site else "compare.json"
        place.set_aside(place.reports / name)
        write_file(place.reports / name, record.to_bytes())
        lines = [f"wrote {place.reports / name}"]
        if asked:
            shown = {"base": None} | {key: value for key, value in chosen.items() if key == "global"}
            screen.say(f"answering {len(asked)} questions with {' and '.join(shown)}")
            text = comparison.answers_side_by_side(lm, plan, shown, asked, max_new_tokens)
            place.set_aside(place.reports / "answers.md")
            write_file(place.reports / "answers.md", text.encode())
            lines.append(f"wrote {place.reports / 'answers.md'}: generated text, not for clinical use")
        if (place.reports / REPORT_NAME).exists() and (page := renew_report(place, screen)):
            lines.append(f"wrote {page}: with this comparison")
    screen.result(record.to_dict(), *comparison_lines(record), *lines)
