r"""Experiments on aggregation with the embedded base model and MedQuAD, a row at a time.

    python benchmarks/aggregation/experiments.py FOLDER --medquad FILE prepare integrity rare exactness \
        server-step carry
    python benchmarks/aggregation/experiments.py FOLDER late --finished WORKSPACE
    python benchmarks/aggregation/experiments.py FOLDER table

Each step appends JSON rows to FOLDER/STEP.jsonl and skips rows that are there, so a run can be stopped and
resumed. Attacks are made from honestly trained adapters; only shuffled labels need a training of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.adapter import Adapter, plan_adapter
from fedmed_cli.aggregation.combine import combine
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.aggregation.server_step import LINE_SEARCH
from fedmed_cli.aggregation.state import AcceptedContribution, AggregationSettings, Evaluator
from fedmed_cli.cli.app import main as fedmed
from fedmed_cli.data import coordinator_examples, examples, site_data
from fedmed_cli.evaluation import measuring
from fedmed_cli.federation import site
from fedmed_cli.intervals import Losses, paired_interval
from fedmed_cli.models import bases, language_model
from fedmed_cli.models.bundled_base import LEARNING_RATE
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.options import SiteSettings
from fedmed_cli.workspace import Workspace

ASSIGN = {
    3: "A=GHR,GARD;B=NIDDK,NINDS,NHLBI;C=MPlusHealthTopics,NIHSeniorHealth,CancerGov,CDC",
    5: "A=GHR;B=GARD;C=NIDDK;D=NINDS,NHLBI;E=MPlusHealthTopics,NIHSeniorHealth,CancerGov,CDC",
}
RARE = "C"  # of five sites the smallest
MAX_CHARACTERS = 450
STEPS, MAX_LENGTH = 20, 192
NUM_TEST = NUM_DECIDING = 40
COMPARED = {
    "uniform mean": AggregationSettings(weights="uniform", clip=None),
    "self-reported": AggregationSettings(weights="self-reported", clip=None),
    "geometric median": AggregationSettings(weights="uniform", robust="geometric-median", clip=None),
    "tokens": AggregationSettings(),
    "agentic": AggregationSettings(weights="agentic", server_lr=None),
}


_has_bfloat16 = language_model.has_bfloat16


@dataclasses.dataclass
class Bench:
    """The base model, loaded once, and the workspaces of all federations."""

    root: Path
    medquad: Path | None
    seeds: Sequence[int]
    finished: Sequence[Path]
    learning_rate: float
    float32: bool = False
    lm: language_model.LanguageModel | None = None

    def model(self, plan: Plan) -> language_model.LanguageModel:
        if self.lm is None:
            local = bases.find_for_plan(plan.base, None, None, print)
            with mock.patch.object(
                language_model, "has_bfloat16", lambda device: not self.float32 and _has_bfloat16(device)
            ):
                self.lm = language_model.load(local, "auto", print)
        return self.lm

    def federation(self, num_sites: int, seed: int, extra: Sequence[str] = (), name: str = "") -> Federation:
        place = Workspace(self.root / f"{num_sites}-sites-seed-{seed}{name}")
        if not place.data.exists():
            short = self.root / "short.jsonl"
            if not short.exists():
                assert self.medquad is not None, "--medquad FILE is needed"
                self.root.mkdir(parents=True, exist_ok=True)
                rows = [json.loads(line) for line in gzip.open(self.medquad, "rt", encoding="utf-8")]
                kept = [row for row in rows if len(row["question"]) + len(row["answer"]) < MAX_CHARACTERS]
                short.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            argv = ["split", "-q", "-C", str(place.root), "--dataset", str(short), "--by", "column:source"]
            argv += ["--assign", ASSIGN[num_sites], "--group-by", "focus", "--seed", str(seed), *extra]
            argv += ["--near-duplicates", "off"]  # questions of one form would chain into one unit
            argv += ["--max-length", str(MAX_LENGTH), "--max-steps", str(STEPS)]
            argv += ["--learning-rate", f"{self.learning_rate:g}"]
            assert fedmed(argv) == 0
        return Federation(self, place, place.read_plan())


@dataclasses.dataclass
class Federation:
    """One split with its plan; trains sites and measures adapters, remembering both."""

    bench: Bench
    place: Workspace
    plan: Plan

    @property
    def lm(self) -> language_model.LanguageModel:
        return self.bench.model(self.plan)

    def train(
        self, name: str, parent: Adapter, number: int, where: Workspace, shuffled: bool = False
    ) -> AcceptedContribution:
        path = where.contribution(name)
        if not path.exists():
            data = site_data.workspace_data(self.place, name)
            if shuffled:
                order = np.random.default_rng(self.plan.training.seed).permutation(len(data.train))
                answers = [data.train[i].answer for i in order]
                rows = [dataclasses.replace(row, answer=text) for row, text in zip(data.train, answers, strict=True)]
                data = dataclasses.replace(data, train=rows)
            where.root.mkdir(parents=True, exist_ok=True)
            site.train_local(where, self.plan, self.lm, name, data, parent, number, SiteSettings(max_eval_samples=12))
            print(f"trained {path}", flush=True)
        folder = gate.read_contribution(path, self.plan, (number, parent.digest))
        return AcceptedContribution(folder.adapter, folder.record, folder.record_digest)

    def honest(self) -> tuple[Adapter, dict[str, AcceptedContribution]]:
        parent = archive.starting_adapter(self.place, self.plan, 1)
        return parent, {name: self.train(name, parent, 1, self.place) for name in self.plan.sites.names}

    def test_set(self) -> measuring.EvaluationSet:
        rows = examples.read_jsonl(self.place.data / "test.jsonl")
        chosen = measuring.sample(rows, NUM_TEST, "focus", examples.home_site)
        return measuring.prepare(self.lm, self.plan, chosen, "focus")

    def test(self, adapter: Adapter) -> Losses:
        return measuring.measure_cached(self.place, self.plan, self.lm, adapter, self.test_set())

    def evaluator(self) -> Evaluator:
        deciding = coordinator_examples.half(self.place, "decide")
        chosen = measuring.sample(deciding, NUM_DECIDING, "focus", examples.home_site)
        items = measuring.prepare(self.lm, self.plan, chosen, "focus")
        return measuring.evaluator(self.place, self.plan, self.lm, items)


class Rows:
    """A JSON-lines file of results; `missing` tells what is still to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def missing(self, **key: object) -> bool:
        return not any(all(row[name] == value for name, value in key.items()) for row in self.rows)

    def add(self, **row: object) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if not isinstance(value, dict)}, flush=True)


def nll(losses: Losses) -> list[list[float]]:
    return [losses.nll.tolist(), losses.num_tokens.tolist()]


# --- attacks ----------------------------------------------------------------------------------------


def forged(
    plan: Plan, one: AcceptedContribution, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> AcceptedContribution:
    return sent_as(one, plan_adapter(plan, {m: change(a, b) for m, (a, b) in one.adapter.factors.items()}))


def sent_as(one: AcceptedContribution, adapter: Adapter) -> AcceptedContribution:
    return AcceptedContribution(adapter, dataclasses.replace(one.record, adapter=adapter.digest), one.record_digest)


def noise(seed: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """B replaced by Gaussian noise of its norm."""
    rng = np.random.default_rng(seed)

    def change(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        random = rng.normal(size=b.shape)
        return a, (random * np.linalg.norm(b) / np.linalg.norm(random)).astype(np.float32)

    return change


def lying(one: AcceptedContribution) -> AcceptedContribution:
    """Claims loss 0 on its validation examples, from an ordinary loss before."""
    zero = Loss(0.0, 0.0, 100, 100, 10_000)
    return dataclasses.replace(one, record=dataclasses.replace(one.record, validation_after=zero))


def attacks(plan: Plan, parent: Adapter, one: AcceptedContribution) -> Iterator[tuple[str, AcceptedContribution]]:
    """What can be made of an honest contribution."""
    seed = plan.training.seed
    for name, times in (("sign flip", -1.0), ("x 8", 8.0)):  # of the update, not of what was there before
        yield name, sent_as(one, COMBINE["svd"](plan, parent, [one.adapter], [times], None)[0])
    yield "noise", forged(plan, one, noise(seed))
    yield "noise, and lies about its loss", lying(forged(plan, one, noise(seed)))
    yield "A and B normal, product not", forged(plan, one, lambda a, b: (a[::-1].copy(), b))


def integrity(bench: Bench) -> None:
    """The first round, one bad site."""
    rows = Rows(bench.root / "integrity.jsonl")
    for seed in bench.seeds:
        for num_sites in (3, 5):
            fed = bench.federation(num_sites, seed)
            bad = fed.plan.sites.names[seed % num_sites]
            parent, contributions = fed.honest()
            where = Workspace(fed.place.root / "shuffled")
            sent = {"none": None, **dict(attacks(fed.plan, parent, contributions[bad]))}
            sent["shuffled labels"] = fed.train(bad, parent, 1, where, shuffled=True)
            for attack, evil in sent.items():
                key = {"sites": num_sites, "seed": seed, "attack": attack}
                if rows.missing(**key):
                    rows.add(**key, **attacked(fed, parent, contributions, bad, evil))


def late(bench: Bench) -> None:
    """The last round of federations that are there already, each of their sites the bad one in turn."""
    rows = Rows(bench.root / "late.jsonl")
    for folder in map(Path.resolve, bench.finished):
        place = Workspace(folder)
        plan, number = place.read_plan(), place.newest_round()
        fed = Federation(bench, place, plan)
        parent = archive.archived_global(place, plan, number - 1).adapter
        contributions = {}
        for name in plan.sites.names:
            one = archive.archived_contribution(place, plan, number, name)
            contributions[name] = AcceptedContribution(one.adapter, one.record, one.record_digest)
        for bad in plan.sites.names:
            for attack, evil in [("none", None), *attacks(plan, parent, contributions[bad])]:
                key = {"federation": str(folder), "bad": bad if evil else "", "attack": attack}
                if rows.missing(**key):
                    row = attacked(fed, parent, contributions, bad, evil)
                    rows.add(**(row | key), sites=len(contributions), seed=str(folder))


def attacked(
    fed: Federation,
    parent: Adapter,
    contributions: Mapping[str, AcceptedContribution],
    bad: str,
    evil: AcceptedContribution | None,
) -> dict:
    """The losses of each rule where site `bad` sends `evil` (None: what it trained), and the agent's verdicts."""
    sent = {**contributions, **({bad: evil} if evil is not None else {})}
    found = {}
    for method, settings in COMPARED.items():
        if method == "tokens" and evil is not None:
            continue
        evaluator = fed.evaluator() if settings.weights == "agentic" else None
        found[method] = combine(fed.plan, parent, sent, settings, evaluator=evaluator)
    losses = {method: nll(fed.test(result.adapter)) for method, result in found.items()}
    if evil is not None:
        rest = {name: one for name, one in contributions.items() if name != bad}
        losses["oracle"] = nll(fed.test(combine(fed.plan, parent, rest, AggregationSettings()).adapter))
        best = combine(fed.plan, parent, rest, COMPARED["agentic"], evaluator=fed.evaluator())
        losses["agentic oracle"] = nll(fed.test(best.adapter))
    losses["base"] = nll(fed.test(parent))
    decisions = found["agentic"].decisions
    return {
        "bad": bad,
        "verdicts": " ".join(f"{name}:{one.verdict}" for name, one in decisions.items()),
        "weights": {name: one.weight for name, one in decisions.items()},
        "reasons": {name: list(one.reasons) for name, one in decisions.items()},
        "groups": fed.test_set().groups,
        "losses": losses,
    }


def rare(bench: Bench) -> None:
    """How often an honest hospital of a rare specialty is rejected: resampled examples, recombined sites."""
    rows = Rows(bench.root / "rare.jsonl")
    for seed in bench.seeds:
        fed = bench.federation(5, seed)
        parent, contributions = fed.honest()
        others = [name for name in fed.plan.sites.names if name != RARE]
        for left_out in ("", *others):
            chosen = {name: one for name, one in contributions.items() if name != left_out}
            for resample in range(4):
                if rows.missing(seed=seed, left_out=left_out, resample=resample):
                    evaluator = resampled(fed.evaluator(), resample)
                    decisions = combine(fed.plan, parent, chosen, COMPARED["agentic"], evaluator=evaluator).decisions
                    rejected = sorted(name for name, one in decisions.items() if one.verdict == "rejected")
                    rows.add(
                        seed=seed,
                        left_out=left_out,
                        resample=resample,
                        rejected=" ".join(rejected),
                        share_of_rare=sum(home == RARE for home in evaluator.example_sites)
                        / len(evaluator.example_sites),
                    )


def resampled(evaluator: Evaluator, seed: int) -> Evaluator:
    """The same evaluator on groups drawn with replacement, each draw a group of its own."""
    names = sorted(set(evaluator.groups))
    drawn = np.random.default_rng(seed).choice(len(names), len(names))
    indices, groups = [], []
    for number, choice in enumerate(drawn):
        own = [i for i, group in enumerate(evaluator.groups) if group == names[choice]]
        indices += own
        groups += [str(number)] * len(own)
    example_sites = [evaluator.example_sites[i] for i in indices]
    return Evaluator(evaluator.digest, groups, example_sites, lambda adapter: evaluator.losses(adapter).take(indices))


# --- exactness, server step, carry ------------------------------------------------------------------


def round_of(fed: Federation, parent: Adapter, number: int, name: str) -> dict[str, AcceptedContribution]:
    where = Workspace(fed.place.root / name)
    return {one: fed.train(one, parent, number, where) for one in fed.plan.sites.names}


def padded_factor_mean(
    plan: Plan, contributions: Mapping[str, AcceptedContribution], weights: Mapping[str, float]
) -> Adapter:
    """The usual way with mixed ranks: factors padded with zeros to the largest rank, then averaged."""
    factors = {}
    for module in plan.modules:
        a = np.zeros((plan.rank(module), plan.modules[module][1]))
        b = np.zeros((plan.modules[module][0], plan.rank(module)))
        for name, one in contributions.items():
            own_a, own_b = one.adapter.factors[module]
            a[: len(own_a)] += weights[name] * own_a
            b[:, : len(own_a)] += weights[name] * own_b
        factors[module] = (a.astype(np.float32), b.astype(np.float32))
    return plan_adapter(plan, factors)


def exactness(bench: Bench) -> None:
    rows = Rows(bench.root / "exactness.jsonl")
    for seed in bench.seeds:
        fed = bench.federation(3, seed)
        parent, first = fed.honest()
        ends = {
            rule: combine(fed.plan, parent, first, AggregationSettings(method=rule)).adapter
            for rule in ("svd", "factor-mean")
        }
        compare_two(rows, fed, seed, "after round 1", ends["svd"], ends["factor-mean"])
        for number in (2, 3):
            for rule, start in list(ends.items()):
                sent = round_of(fed, start, number, f"{rule}-{number}")
                ends[rule] = combine(fed.plan, start, sent, AggregationSettings(method=rule)).adapter
        compare_two(rows, fed, seed, "after round 3", ends["svd"], ends["factor-mean"])
        mixed = bench.federation(3, seed, ["--lora-r", "16", "--lora-alpha", "32"], "-mixed")
        ranks = dataclasses.replace(mixed.plan.sites, ranks={"A": 4, "B": 8})
        mixed = dataclasses.replace(mixed, plan=dataclasses.replace(mixed.plan, sites=ranks))
        parent, first = mixed.honest()
        result = combine(mixed.plan, parent, first, AggregationSettings())
        weights = {name: one.weight * one.clip_factor for name, one in result.decisions.items()}
        padded = padded_factor_mean(mixed.plan, first, weights)
        compare_two(rows, mixed, seed, "ranks 4, 8, 16 after round 1", result.adapter, padded)


def compare_two(rows: Rows, fed: Federation, seed: int, what: str, one: Adapter, two: Adapter) -> None:
    if rows.missing(seed=seed, what=what):
        base = archive.starting_adapter(fed.place, fed.plan, 1)
        losses = {"svd": nll(fed.test(one)), "factor-mean": nll(fed.test(two)), "base": nll(fed.test(base))}
        rows.add(seed=seed, what=what, groups=fed.test_set().groups, losses=losses)


def server_step(bench: Bench) -> None:
    rows = Rows(bench.root / "server-step.jsonl")
    for seed in bench.seeds:
        for num_sites in (3, 5):
            fed = bench.federation(num_sites, seed)
            start, sent = fed.honest()
            cases = [("round 1", start, sent)]
            if num_sites == 3:
                after = combine(fed.plan, start, sent, AggregationSettings()).adapter
                cases.append(("round 2", after, round_of(fed, after, 2, "svd-2")))
            for what, parent, contributions in cases:
                if rows.missing(seed=seed, sites=num_sites, what=what):
                    losses = {}
                    for eta in LINE_SEARCH:
                        settings = AggregationSettings(server_lr=eta)
                        losses[f"{eta:g}"] = nll(fed.test(combine(fed.plan, parent, contributions, settings).adapter))
                    fedexp = combine(fed.plan, parent, contributions, AggregationSettings(server_lr=None)).server_lr
                    # The search on the coordinator's examples; like η it is measured on the test examples.
                    auto = combine(
                        fed.plan, parent, contributions, AggregationSettings(server_lr=None), evaluator=fed.evaluator()
                    )
                    items = fed.test_set()
                    homes = [examples.home_site(example) for example in items.examples]
                    rows.add(
                        seed=seed,
                        sites=num_sites,
                        what=what,
                        fedexp=fedexp,
                        auto=auto.server_lr,
                        groups=items.groups,
                        homes=homes,
                        losses=losses,
                    )


def carry(bench: Bench) -> None:
    """What the components beyond the plan's rank are worth: 8 more of them kept, frozen, while the sites train 8."""
    import torch

    rows = Rows(bench.root / "carry.jsonl")
    # The rest is added to the base weights, and in bfloat16 most of it would be rounded away.
    bench = dataclasses.replace(bench, root=bench.root / "float32", float32=True, lm=None)
    for num_sites, seed in itertools.product((3, 5), bench.seeds):
        if not rows.missing(sites=num_sites, seed=seed):
            continue
        fed = bench.federation(num_sites, seed)
        start, sent = fed.honest()
        plan = fed.plan
        wide = dataclasses.replace(plan, lora=dataclasses.replace(plan.lora, r=16, alpha=32.0))
        plain = combine(plan, start, sent, AggregationSettings())
        coefficients = [one.weight * one.clip_factor for one in plain.decisions.values()]
        order = [sent[name].adapter for name in plain.decisions]
        kept = COMBINE["svd"](wide, start, order, coefficients, None)[0]  # rank 16: the first 8 are trained further
        exact = COMBINE["stack"](plan, start, order, coefficients, None)[0]
        losses = {
            "round 1, rank 8": nll(fed.test(plain.adapter)),
            "round 1, rank 8 + 8": nll(fed.test(kept)),
            "round 1, exact": nll(fed.test(exact)),
        }
        second = round_of(fed, plain.adapter, 2, "svd-2")
        losses["round 2, rank 8"] = nll(fed.test(combine(plan, plain.adapter, second, AggregationSettings()).adapter))
        # The frozen rest is added to the weights while sites train and while the result is measured.
        rest = {m: plan.scale(m) * b[:, 8:] @ a[8:] for m, (a, b) in kept.factors.items()}
        base = fed.lm.model.get_base_model() if hasattr(fed.lm.model, "get_base_model") else fed.lm.model
        saved = {}
        with torch.no_grad():
            for module, delta in rest.items():
                layer = base.get_submodule(module)
                weight = getattr(layer, "base_layer", layer).weight
                saved[module] = weight.clone()
                weight += torch.from_numpy(delta).to(weight)
        try:
            where = Workspace(fed.place.root / "carry-2")
            carried = {name: fed.train(name, plain.adapter, 2, where) for name in plan.sites.names}
            after = combine(plan, plain.adapter, carried, AggregationSettings()).adapter
            items = fed.test_set()
            losses["round 2, rank 8 + 8"] = nll(measuring.measure(fed.lm, after, items.encoded))
        finally:
            with torch.no_grad():
                for module, weight in saved.items():
                    layer = base.get_submodule(module)
                    getattr(layer, "base_layer", layer).weight.copy_(weight)
        rows.add(sites=num_sites, seed=seed, groups=fed.test_set().groups, losses=losses)


# --- tables -----------------------------------------------------------------------------------------


def pooled(rows: Sequence[Mapping], method: str) -> Losses:
    parts = [row["losses"][method] for row in rows]
    return Losses(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def difference(rows: Sequence[Mapping], one: str, two: str) -> str:
    groups = [f"{row['seed']}/{group}" for row in rows for group in row["groups"]]
    interval = paired_interval(pooled(rows, one), pooled(rows, two), groups)
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def table(bench: Bench) -> None:
    for name in ("integrity", "late"):
        if rows := Rows(bench.root / f"{name}.jsonl").rows:
            attack_table(rows)
    rows = Rows(bench.root / "rare.jsonl").rows
    if rows:
        trials = [row for row in rows if RARE in row["rejected"].split()]
        print(f"\nrare specialty ({RARE}): rejected in {len(trials)} of {len(rows)} trials; any honest site in "
              f"{sum(bool(row['rejected']) for row in rows)}")  # fmt: skip
    rows = Rows(bench.root / "exactness.jsonl").rows
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        print(f"\n{what}: svd {pooled(own, 'svd').mean:.4f}, factor-mean {pooled(own, 'factor-mean').mean:.4f}, "
              f"svd − factor-mean {difference(own, 'svd', 'factor-mean')} ({len(own)} seeds)")  # fmt: skip
    rows = Rows(bench.root / "server-step.jsonl").rows
    for row in rows:
        row["losses"]["auto"] = row["losses"][f"{row['auto']:g}"]
    if rows:
        print(f"\nauto − 1 over all rows: {difference(rows, 'auto', '1')}")
    for num_sites, what in dict.fromkeys((row["sites"], row["what"]) for row in rows):
        own = [row for row in rows if (row["sites"], row["what"]) == (num_sites, what)]
        cells = [f"{eta:g}: {pooled(own, f'{eta:g}').mean:.4f}" for eta in LINE_SEARCH]
        against = [f"{eta:g} − 1: {difference(own, f'{eta:g}', '1')}" for eta in LINE_SEARCH[1:]]
        against.append(f"auto − 1: {difference(own, 'auto', '1')}")
        fedexp, auto = (", ".join(f"{row[name]:.2f}" for row in own) for name in ("fedexp", "auto"))
        print(f"\n{num_sites} sites, {what}: {', '.join(cells)}; {'; '.join(against)}; FedExP {fedexp}; auto {auto}")
        for home in sorted({home for row in own for home in row["homes"]}):
            part = [narrow(row, home) for row in own]
            names = [*(f"{eta:g}" for eta in LINE_SEARCH[1:]), "auto"]
            print(f"  {home}: " + "; ".join(f"{name} − 1: {difference(part, name, '1')}" for name in names))
    rows = Rows(bench.root / "carry.jsonl").rows
    for num_sites in sorted({row["sites"] for row in rows}):
        own = [row for row in rows if row["sites"] == num_sites]
        print(f"\ncarry, {num_sites} sites ({len(own)} seeds)")
        for name in own[0]["losses"]:
            print(f"  {name}: {pooled(own, name).mean:.4f}")
        pairs = [
            ("round 1, rank 8 + 8", "round 1, rank 8"),
            ("round 1, exact", "round 1, rank 8"),
            ("round 2, rank 8 + 8", "round 2, rank 8"),
        ]
        for one, two in pairs:
            print(f"  {one} − {two}: {difference(own, one, two)}")


def attack_table(rows: Sequence[Mapping]) -> None:
    heads = ["sites", "attack", "before", "uniform mean", "self-reported", "geometric median", "agentic", "oracle"]
    heads += ["agentic − oracle (without an attack − tokens), 95 %", "agentic − agentic oracle, 95 %", "rejected"]
    print(f"\n| {' | '.join(heads)} |")
    print("| --- " * len(heads) + "|")
    for federation, attack in dict.fromkeys((row.get("federation", row["sites"]), row["attack"]) for row in rows):
        own = [row for row in rows if (row.get("federation", row["sites"]), row["attack"]) == (federation, attack)]
        reference = "tokens" if attack == "none" else "oracle"
        names = ["base", "uniform mean", "self-reported", "geometric median", "agentic", reference]
        cells = [f"{pooled(own, name).mean:.4f}" for name in names]
        rejected = sum(f"{row['bad']}:rejected" in row["verdicts"] for row in own)
        wrong = sum(part.endswith("rejected") and not part.startswith(row["bad"] or " ") for row in own
                    for part in row["verdicts"].split())  # fmt: skip
        found = f"{rejected} of {len(own)}" + (f", and {wrong} honest" if wrong else "")
        second = "" if attack == "none" else difference(own, "agentic", "agentic oracle")
        cells += [difference(own, "agentic", reference), second, found]
        print(f"| {federation} | {attack} | {' | '.join(cells)} |")


def narrow(row: Mapping, home: str) -> dict:
    """A row with the examples of one site alone."""
    own = [i for i, name in enumerate(row["homes"]) if name == home]
    losses = {name: [[part[i] for i in own] for part in parts] for name, parts in row["losses"].items()}
    return dict(row) | {"groups": [row["groups"][i] for i in own], "losses": losses}


def prepare(bench: Bench) -> None:
    for seed in bench.seeds:
        for num_sites in (3, 5):
            bench.federation(num_sites, seed).honest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="+", choices=STEPS_BY_NAME)
    parser.add_argument("--medquad", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finished", type=Path, nargs="+", default=[], help="workspaces with rounds, for `late`")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.folder, arguments.medquad, arguments.seeds, arguments.finished, arguments.learning_rate)
    for step in arguments.steps:
        STEPS_BY_NAME[step](bench)


STEPS_BY_NAME = {
    "prepare": prepare,
    "integrity": integrity,
    "late": late,
    "rare": rare,
    "exactness": exactness,
    "server-step": server_step,
    "carry": carry,
    "table": table,
}

if __name__ == "__main__":
    main()
