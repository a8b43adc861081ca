"""`fedmed compare`: did federating help, whom, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.screen import Screen
    from fedmed_cli.workspace import Workspace


def compare(
    site: Annotated[
        str | None, typer.Option("--site", help="Inside a hospital: on its own test examples (data/SITE/test.jsonl).")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="One more adapter: PATH or NAME=PATH (repeatable).")
    ] = None,
    all_rounds: Annotated[bool, typer.Option("--all-rounds", help="Every round's global adapter.")] = False,
    by_column: Annotated[
        list[str] | None, typer.Option("--by-column", help="Also for each value of this column (repeatable).")
    ] = None,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores", help="With --site: score all of adapters/ on its validation examples, for --weights crosseval."
        ),
    ] = False,
    max_eval_samples: Annotated[int, typer.Option("--max-eval-samples", min=2, help="Examples to measure on.")] = 600,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="Questions, one a line, to answer side by side [bundled].")
    ] = None,
    answers: Annotated[bool, typer.Option("--answers/--no-answers", help="Write answers side by side.")] = True,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of those answers.")] = 64,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Measure base, sites' and global adapters on examples that nobody trained on or chose weights with.

    Losses go to reports/compare.json; answers to bundled or given questions to reports/answers.md.

    Example: fedmed compare
    """
    from fedmed_cli import bases
    from fedmed_cli.errors import UsageError
    from fedmed_cli.screen import Screen
    from fedmed_cli.workspace import Workspace, write_file

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    if scores:
        if adapter or all_rounds or questions or by_column:
            raise UsageError("--adapter, --all-rounds, --questions and --by-column have no use with --scores")
        _write_scores(screen, place, site, max_eval_samples, (device, base, base_wheel))
        return
    if site is not None and site not in plan.sites.names:
        raise UsageError(f"--site {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    with place.lock():
        from fedmed_cli import candidates, comparison

        tests = comparison.test_set(place, site, max_eval_samples, screen.say)
        chosen = candidates.workspace_adapters(place, plan, all_rounds, screen.say)
        chosen |= candidates.named_adapters(plan, adapter or [], chosen)
        asked = comparison.read_questions(questions) if answers else []
        if not chosen:
            screen.say("there is no adapter yet: only the base model is measured")
        local = bases.find_for_plan(plan.base, base, base_wheel, screen.say)

        from fedmed_cli import models
        from fedmed_cli.commands.compare_tables import comparison_lines

        lm = models.load(local, device, screen.say, screen.detail)
        with screen.progress("comparing") as update:
            record = comparison.compare(
                place,
                plan,
                lm,
                chosen,
                tests,
                site=site,
                by_column=by_column or [],
                say=screen.say,
                progress=lambda name, done, total: update(done, total, f"{name}, {done}/{total} examples"),
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
    screen.result(record.to_dict(), *comparison_lines(record), *lines)


def _write_scores(
    screen: Screen,
    place: Workspace,
    site: str | None,
    max_eval_samples: int,
    where: tuple[str, str | None, Path | None],
) -> None:
    """Score the contributions in adapters/ on a hospital's validation examples and write scores/SITE.json."""
    from fedmed_cli.bases import find_for_plan
    from fedmed_cli.errors import UsageError
    from fedmed_cli.workspace import write_file

    plan = place.read_plan()
    if site not in plan.sites.names:
        raise UsageError(f"--scores goes with --site, one of {', '.join(plan.sites.names)}")
    with place.lock():
        local = find_for_plan(plan.base, where[1], where[2], screen.say)

        from fedmed_cli import models, scoring
        from fedmed_cli.commands.live import step_events
        from fedmed_cli.commands.tables import scores_table

        lm = models.load(local, where[0], screen.say, screen.detail)
        with step_events(screen, f"scoring at {site}") as events:
            record = scoring.score(place, plan, lm, site, max_eval_samples, events)
        path = place.scores / f"{site}.json"
        place.set_aside(path)
        write_file(path, record.to_bytes())
    screen.result(record.to_dict(), scores_table(record), f"wrote {path}: send this file to the coordinator")
