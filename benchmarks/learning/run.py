"""What brings three unlike hospitals nearer to training on all records in one place, a row at a time.

    python benchmarks/learning/run.py FOLDER --medquad FILE train rounds:2e-4 rounds:5e-4 pooled:5e-4 rounds:5e-4:relay
    python benchmarks/learning/run.py FOLDER table [--on report] [--bound pooled:1e-3] [--against rounds:2e-4]

A row is KIND:RATE[:OPTION...]. Kinds: `rounds` (fedmed's own), `pooled` and `pooled-parallel` (upper bounds, with as
many steps as rounds have), `alone` (each hospital by itself), `chains` (each hospital starts from its neighbour's
adapter of the round before, and the last round's are averaged), `personal` (each hospital's private adapter, or the
global one where `personalise` keeps that). Kinds that do the last round of `rounds` again: `again` (combined in another
way), `fitted` (a coefficient for each site, projection and third of the layers), `tail` (each site's adapter is the
mean over the second half of its steps).
Options: `relay` (rounds of one hospital each, in turn, but the last), `balanced` and `initial` (factors as they once
were), `cosine` (one decay over the three rounds), `momentum=0.5` (of the server), `steps=50` (local steps, with as many
more rounds), `warmup=10` (steps, in each round), `prox=0.01` (FedProx's mu), `moments` (AdamW's second moments go on
from round to round, as means); of `personal`: `own=100` (steps of its own); of `again`: `step=1.5` (the server's),
`add=0.3` (of the global adapter's last change), `stack` (nothing cut).
Every row is measured on the coordinator's reporting examples, to choose by, and on test examples, to report. Rows go
to FOLDER/rows.jsonl; what is there is not trained again, and a training that was stopped goes on (`chains`,
`tail`, `fitted` and `moments` begin again).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from last_round import Fit, LastRound

import fedmed_cli as fedmed
from fedmed_cli import intervals
from fedmed_cli.adapters import archive
from fedmed_cli.adapters.adapter import Adapter, Factors, plan_adapter
from fedmed_cli.adapters.low_rank import Product, truncate
from fedmed_cli.aggregation import methods
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.data import coordinator_examples, examples, site_data
from fedmed_cli.data.split_options import SplitOptions
from fedmed_cli.evaluation import measuring
from fedmed_cli.events import Step
from fedmed_cli.federation import coordinator, pooled, simulation
from fedmed_cli.intervals import Losses
from fedmed_cli.models import prompts
from fedmed_cli.records.plan import Plan, Sites
from fedmed_cli.reporting import numbers
from fedmed_cli.training.loop import order_seed, train
from fedmed_cli.workspace import Workspace

ROUNDS = 3
AFTER_ROUNDS = ("step", "add", "stack", "own")  # options that leave the rounds as they are
TAIL_STEPS = (1.0, 1.5, 2.0)  # of the server
PLANNED = {"steps": "max_steps", "warmup": "warmup_steps", "prox": "fedprox_mu"}  # options of the plan's training
NUM_DECIDING, NUM_FITTING, NUM_REPORTING, NUM_TEST = 50, 200, 160, 240


@dataclasses.dataclass(frozen=True)
class Federation:
    """Hospitals, how their examples are divided, and each one's steps a round. `assign` None: by dirichlet."""

    names: tuple[str, ...]
    steps: int
    assign: Mapping[str, Sequence[str]] | None

    def options(self) -> SplitOptions:
        shared = {"names": self.names, "group_by": "focus", "near_duplicates": None}
        if self.assign is None:
            return SplitOptions(method="dirichlet", **shared)
        return SplitOptions(method="column", column="source", assign=self.assign, **shared)


MEDQUAD = {
    "A": ("GHR", "GARD"),
    "B": ("NIDDK", "NINDS", "NHLBI"),
    "C": ("MPlusHealthTopics", "NIHSeniorHealth", "CancerGov", "CDC"),
}
FIVE = {
    "A": ("GHR",),
    "B": ("GARD",),
    "C": ("NIDDK", "NINDS"),
    "D": ("NHLBI", "NIHSeniorHealth"),
    "E": ("MPlusHealthTopics", "CancerGov", "CDC"),
}
FEDERATIONS = {
    "medquad": Federation(tuple(MEDQUAD), 100, MEDQUAD),
    "five": Federation(tuple(FIVE), 60, FIVE),
    "corpus": Federation(("A", "B", "C"), 50, None),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """KIND:RATE[:OPTION...] taken apart."""

    text: str

    @property
    def kind(self) -> str:
        return self.text.split(":")[0]

    @property
    def variant(self) -> str:
        """What the plan or the server's step has of its own: rows that share it share a workspace."""
        parts = [part for part in self.text.split(":")[1:] if part.partition("=")[0] not in AFTER_ROUNDS]
        return "-".join(parts).replace("=", "-")

    @property
    def rate(self) -> float:
        return float(self.text.split(":")[1])

    def names(self, sites: Sequence[str]) -> list[str]:
        """What it is called in the table: one line, or several for the kinds that have several adapters."""
        if self.kind in ("alone", "personal"):
            return [f"{self.text} {site}" for site in sites]
        return [f"{self.text} step {step:g}" for step in TAIL_STEPS] if self.kind == "tail" else [self.text]

    def option(self, name: str) -> str | None:
        """The value of an option ("" without one); None where the row has not got it."""
        found = dict(part.partition("=")[::2] for part in self.text.split(":")[2:])
        return found.get(name)


class Bench:
    """The base model, loaded once, and the workspaces of one division of the data."""

    def __init__(self, root: Path, medquad: Path | None, name: str, seed: int, sites: Sequence[str]) -> None:
        self.federation, self.seed = FEDERATIONS[name], seed
        self.sites = sites or self.federation.names
        root = root if name == "medquad" else root / name
        self.root = root / f"seed-{seed}"
        self.split = Workspace(self.root / "split")
        if not self.split.data.exists():
            assert medquad is not None or self.federation.assign is None, "--medquad FILE is needed"
            source = "corpus" if self.federation.assign is None else str(medquad)
            options = fedmed.PlanOptions(seed=seed)
            fedmed.split(self.split, fedmed.Source([source]), self.federation.options(), options, say=print)
        self.base = fedmed.BaseModel(say=print)
        self.lm = self.base.load(self.split.read_plan().base)
        self.results = root / "rows.jsonl"

    def workspace(self, row: Row) -> tuple[Workspace, Plan]:
        """The workspace of a row's plan, which has the same examples as all others."""
        plan = self.split.read_plan()
        training = dataclasses.replace(plan.training, learning_rate=row.rate, max_steps=self.federation.steps)
        for option, name in PLANNED.items():
            if value := row.option(option):
                training = dataclasses.replace(training, **{name: type(getattr(training, name))(value)})
        if row.option("cosine") is not None:
            training = dataclasses.replace(training, lr_scheduler_type="cosine", lr_scheduler_rounds=ROUNDS)
        sites = dataclasses.replace(plan.sites, min_sites=1)  # one takes part in a relay's rounds
        plan = dataclasses.replace(plan, training=training, sites=sites)
        place = Workspace(self.root / row.variant)
        if not place.data.exists():
            place.root.mkdir(parents=True, exist_ok=True)
            place.plan_path.write_bytes(plan.to_bytes())
            copied = place.root / "data.part"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(self.split.data, copied)
            copied.rename(place.data)
        return place, plan

    def rounds_of(self, plan: Plan, row: Row) -> tuple[int, int]:
        """How many rounds make the work of ROUNDS rounds with this row's steps, and how many of them one site's."""
        rounds, rest = divmod(ROUNDS * self.federation.steps, plan.training.max_steps)
        assert not rest, f"{plan.training.max_steps} steps a round do not divide {ROUNDS * self.federation.steps}"
        relay = (rounds - 1) * len(plan.sites.names) if row.option("relay") is not None else 0
        return relay + 1 if relay else rounds, relay

    def adapters(self, row: Row) -> Iterator[Adapter]:
        """Train a row; its adapters, in the order of its names."""
        methods.truncate = next((form for name, form in FACTORS.items() if row.option(name) is not None), truncate)
        place, plan = self.workspace(row)
        if row.kind == "rounds":
            yield self.run_rounds(place, plan, row)
        elif row.kind == "alone":
            for site in self.sites:
                yield self.alone(place, plan, row, site)
        elif row.kind == "personal":
            for site in self.sites:
                yield self.personal(place, plan, row, site)
        elif row.kind == "again":
            yield self.combine_again(place, plan, row)
        elif row.kind == "fitted":
            rows = measuring.sample(coordinator_examples.half(self.split, "decide"), NUM_FITTING, "focus")
            items = measuring.prepare(self.lm, plan, rows, "focus")
            yield Fit(self.lm, plan, LastRound(place, plan, self.rounds_of(plan, row)[0]), items).run()
        elif row.kind == "tail":
            yield from self.average_tails(place, plan, row)
        elif row.kind == "chains":
            yield self.chains(place, plan)
        else:
            trained = [Workspace(path) for path in sorted(self.root.iterdir())]
            trained = [one for one in trained if one.newest_round() == ROUNDS and "relay" not in one.root.name]
            assert trained, "train a row of rounds first: a bound has as many steps as they have"
            (wanted,) = pooled.gather(trained[0], trained[0].read_plan(), [row.kind], None, print)
            with place.lock():
                yield pooled.pooled_adapter(place, plan, self.lm, wanted, print, _note_step)

    def run_rounds(self, place: Workspace, plan: Plan, row: Row) -> Adapter:
        """The global adapter of the last round."""
        settings = coordinator.default_settings(place)
        if momentum := row.option("momentum"):
            settings = dataclasses.replace(settings, server_momentum=float(momentum))
        (last, relay), moments = self.rounds_of(plan, row), row.option("moments") is not None
        assert not (relay and (moments or row.option("cosine") is not None)), f"{row.text}: is not made for a relay"
        if moments and place.newest_round() < last:
            assert not place.adapters.exists(), f"{place.root}: was stopped; remove it, moments do not go on"
        carried = mock.patch.object(torch.optim, "AdamW", CarriedMoments(len(plan.sites.names)))
        with place.lock(), carried if moments else contextlib.nullcontext():
            rounds = simulation.run_rounds(
                place,
                plan,
                self.lm,
                last,
                settings,
                training=fedmed.SiteSettings(max_eval_samples=10),
                max_eval_samples=NUM_DECIDING,
                relay=relay,
                events_for=lambda name, number: fedmed.Events(say=print),
            )
            for summary in rounds:
                print(f"{row.text}: round {summary.aggregate.round}, step {summary.aggregate.server_lr}", flush=True)
        return archive.archived_global(place, plan, last).adapter

    def alone(self, place: Workspace, plan: Plan, row: Row, site: str) -> Adapter:
        own = Workspace(place.root / "alone" / site)
        own_plan = dataclasses.replace(plan, sites=Sites((site,), 1))
        if not own.data.exists():
            own.root.mkdir(parents=True, exist_ok=True)
            own.plan_path.write_bytes(own_plan.to_bytes())
            shutil.copytree(place.site_data(site), own.site_data(site))
            shutil.copy(place.data / "split.json", own.data)
        return self.run_rounds(own, own_plan, row)

    def personal(self, place: Workspace, plan: Plan, row: Row, site: str) -> Adapter:
        """The private adapter, or the global one where `personalise` keeps that."""
        own = row.option("own")
        settings = fedmed.SiteSettings(max_steps=int(own) if own else None)
        result = fedmed.personalise(place, site, settings=settings, base=self.base, events=fedmed.Events(say=print))
        print(f"{row.text} {site}: {result.losses}, share {result.share}, {result.change}", flush=True)
        made = archive.personal_adapter(place, plan, site)
        return made.adapter if made else archive.archived_global(place, plan, self.rounds_of(plan, row)[0]).adapter

    def combine_again(self, place: Workspace, plan: Plan, row: Row) -> Adapter:
        updates = LastRound(place, plan, self.rounds_of(plan, row)[0])
        step = float(row.option("step") or updates.server_lr)
        method = "stack" if row.option("stack") is not None else "svd"
        share = row.option("add")
        momentum = (float(share), updates.before) if share else None
        coefficients = [step * weight for weight in updates.weights]
        return COMBINE[method](plan, updates.parent, updates.ends, coefficients, momentum)[0]

    def average_tails(self, place: Workspace, plan: Plan, row: Row) -> Iterator[Adapter]:
        """The last round again, each site's adapter the mean of its factors over the second half of its steps."""
        number, steps = self.rounds_of(plan, row)[0], plan.training.max_steps
        updates, ends = LastRound(place, plan, number), []
        for site in updates.names:
            seen: dict[str, list[Factors]] = defaultdict(list)

            def note(step: Step, seen: dict[str, list[Factors]] = seen) -> None:
                if step.step > steps // 2 and step.step % 2 == 0:
                    for module, pair in self.lm.read_factors().items():
                        seen[module].append(pair)

            seed = order_seed(plan, site, number)
            encoded = self._encoded(place, plan, site)
            train(self.lm, plan, updates.parent, encoded, steps, seed=seed, round_number=number, progress=note)
            means = {
                module: tuple(np.mean(parts, axis=0) for parts in zip(*seen[module], strict=True)) for module in seen
            }
            ends.append(plan_adapter(plan, means))
            print(f"tail: site {site}", flush=True)
        for step in TAIL_STEPS:
            coefficients = [step * weight for weight in updates.weights]
            yield COMBINE["svd"](plan, updates.parent, ends, coefficients, None)[0]

    def _encoded(self, place: Workspace, plan: Plan, site: str) -> list[prompts.Encoded]:
        rows = site_data.workspace_data(place, site).train
        each = [prompts.encode(one, plan.prompt, self.lm.tokenizer, plan.training.max_length) for one in rows]
        return [tokens for tokens in each if tokens is not None]

    def chains(self, place: Workspace, plan: Plan) -> Adapter:
        """As many chains as hospitals, each through ROUNDS of them."""
        names = self.federation.names
        start = archive.starting_adapter(place, plan, 1)
        ends = [start] * len(names)
        for number in range(1, ROUNDS + 1):
            ends = [
                self._train_site(place, plan, site, before, number)
                for site, before in zip(names, [*ends[-1:], *ends[:-1]], strict=True)
            ]
        return _mean(plan, start, ends)

    def _train_site(self, place: Workspace, plan: Plan, site: str, start: Adapter, number: int) -> Adapter:
        print(f"round {number}, site {site}", flush=True)
        seed, encoded = order_seed(plan, site, number), self._encoded(place, plan, site)
        return train(self.lm, plan, start, encoded, plan.training.max_steps, seed=seed, round_number=number).adapter

    def measure(self, use: str, adapter: Adapter | None) -> tuple[Losses, list[str], list[str]]:
        """Losses on one of the two sets, with each example's group and the site it is of."""
        if use == "test":
            rows, most = examples.read_jsonl(self.split.data / "test.jsonl"), NUM_TEST
        else:
            rows, most = coordinator_examples.half(self.split, "report"), NUM_REPORTING
        plan = self.split.read_plan()
        items = measuring.prepare(self.lm, plan, measuring.sample(rows, most, "focus", examples.home_site), "focus")
        losses = measuring.measure_cached(self.split, plan, self.lm, adapter, items)
        return losses, items.groups, [examples.home_site(one) for one in items.examples]

    def missing(self, name: str) -> list[str]:
        """The sets that a row is not measured on yet."""
        done = {one["on"] for one in read(self.results) if one["name"] == name and one["seed"] == self.seed}
        return [use for use in ("report", "test") if use not in done]

    def add(self, name: str, adapter: Adapter | None) -> None:
        for use in self.missing(name):
            losses, groups, homes = self.measure(use, adapter)
            row = {
                "name": name, "seed": self.seed, "on": use, "nll": np.round(losses.nll, 5).tolist(),
                "num_tokens": losses.num_tokens.tolist(), "groups": groups, "homes": homes,
            }  # fmt: skip
            with self.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}: {losses.mean:.4f} on {use}", flush=True)


class CarriedMoments:
    """Makes AdamW optimisers that begin with the sites' mean second moments of the previous round.

    One number for each factor of each module, since the global adapter's factors are not the sites' own
    (after FedAdamW, arXiv 2510.27486). A training that was stopped does not go on with them.
    """

    def __init__(self, num_sites: int) -> None:
        self.adamw, self.num_sites = torch.optim.AdamW, num_sites
        self.made: list[torch.optim.Optimizer] = []

    def __call__(self, parameters: Sequence[torch.nn.Parameter], **options: float) -> torch.optim.Optimizer:
        optimizer = self.adamw(parameters, **options)
        whole = len(self.made) // self.num_sites * self.num_sites
        round_before = self.made[whole - self.num_sites : whole] if whole else []
        for parameter in parameters if round_before else ():
            states = [other.state[parameter] for other in round_before]
            optimizer.state[parameter] = {
                "step": states[0]["step"].clone(),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.stack([state["exp_avg_sq"].mean() for state in states])
                .mean()
                .expand_as(parameter)
                .clone(),
            }
        self.made.append(optimizer)
        return optimizer


def _note_step(step: Step) -> None:
    if step.step % 50 == 0:
        print(f"step {step.step} of {step.max_steps}, {step.loss:.3f}", flush=True)


def _mean(plan: Plan, parent: Adapter, ends: Sequence[Adapter]) -> Adapter:
    """The exact mean of these adapters at the plan's rank."""
    return COMBINE["svd"](plan, parent, list(ends), [1 / len(ends)] * len(ends), None)[0]


def _truncate_balanced(product: Product, r: int, scaling: float, initial_a: np.ndarray) -> tuple[Factors, float, float]:
    """As `truncate`, the root of each singular value on both sides, as fedmed did at first."""
    (a, b), cut, total = truncate(product, r, scaling, initial_a)
    columns = np.linalg.norm(b, axis=0)
    ratio = np.where(columns > 0, np.sqrt(columns / np.linalg.norm(a, axis=1)), 1).astype(np.float32)
    return (a * ratio[:, None], b / ratio), cut, total


def _truncate_initial(product: Product, r: int, scaling: float, initial_a: np.ndarray) -> tuple[Factors, float, float]:
    """As `truncate`, A's rows as long as the plan's initial ones, as fedmed did then."""
    (a, b), cut, total = truncate(product, r, scaling, initial_a)
    ratio = (np.linalg.norm(initial_a, axis=1) / np.linalg.norm(a, axis=1)).astype(np.float32)
    return (a * ratio[:, None], b / ratio), cut, total


FACTORS = {"balanced": _truncate_balanced, "initial": _truncate_initial}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path, seed: int, use: str, bound: str | None, against: str | None) -> None:
    """Each row's loss, its difference from the base and its share of the bound's gain, and its loss at each site.

    With `against`, differences from that row instead, at each site too.
    """
    every = [one for one in read(path) if one["seed"] == seed]
    rows = {one["name"]: one for one in every if one["on"] == use}
    losses = {name: Losses(np.array(one["nll"]), np.array(one["num_tokens"])) for name, one in rows.items()}
    groups, homes = rows["base"]["groups"], rows["base"]["homes"]
    sites = sorted(set(homes))
    lone = [losses[name] for name in losses if name.startswith("alone:")]
    bounds = [one for one in every if one["name"].startswith("pooled:") and one["on"] == "report"]
    bounds = [one for one in bounds if one["name"] in losses]  # one may be under way
    if bound is None and bounds:
        bound = min(bounds, key=lambda one: sum(one["nll"]))["name"]
    print(f"{len(groups)} examples of the {use} set, {len(set(groups))} groups; the bound is {bound}\n")
    print(
        f"| row | loss | against {against or 'base'} | of the bound's gain | of its gain over the best alone | "
        + " | ".join(f"on {site}" for site in sites)
        + " |"
    )
    print("| --- | --- | --- | --- | --- |" + " --- |" * len(sites))
    for name, one in sorted(losses.items(), key=lambda item: -item[1].mean):
        other = losses[against or "base"]
        cells = [name, f"{one.mean:.4f}", _difference(one, other, groups)]
        for start in (losses["base"], min(lone, key=lambda losses: losses.mean) if lone else None):
            cells.append(_share(start, one, losses[bound], groups) if start is not None and bound else "")
        for site in sites:
            share = [i for i, home in enumerate(homes) if home == site]
            mine = one.take(share)
            own_groups = [groups[i] for i in share]
            cells.append(_difference(mine, other.take(share), own_groups) if against else f"{mine.mean:.4f}")
        print(f"| {' | '.join(cells)} |")


def _difference(one: Losses, other: Losses, groups: Sequence[str]) -> str:
    return numbers.interval(intervals.paired_interval(one, other, groups))


def _share(start: Losses, one: Losses, bound: Losses, groups: Sequence[str]) -> str:
    found = intervals.share_of_gain(start, one, bound, groups)
    return f"{100 * found.mean:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]" if found else "not clear"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("action", choices=["train", "table"])
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--medquad", type=Path)
    parser.add_argument("--federation", choices=FEDERATIONS, default="medquad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sites", nargs="+", default=(), help="whose `alone` and `personal` to train (default: all)")
    parser.add_argument("--on", choices=["report", "test"], default="test")
    parser.add_argument("--bound", help="the row that shares are of (default: the pooled one that is best on `report`)")
    parser.add_argument("--against", help="the row that differences are from (default: base)")
    arguments = parser.parse_args()
    name = arguments.federation
    if arguments.action == "table":
        folder = arguments.folder if name == "medquad" else arguments.folder / name
        table(folder / "rows.jsonl", arguments.seed, arguments.on, arguments.bound, arguments.against)
        return
    bench = Bench(arguments.folder, arguments.medquad, name, arguments.seed, arguments.sites)
    bench.add("base", None)
    for row in map(Row, arguments.rows):
        names = row.names(bench.sites)
        if any(map(bench.missing, names)):
            for name, adapter in zip(names, bench.adapters(row), strict=True):
                bench.add(name, adapter)


if __name__ == "__main__":
    main()
