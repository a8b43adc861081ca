"""Divide examples among sites, and each site's examples into train, validation, coordinator and test sets.

What may not be torn apart is a *unit*: examples that share a group or the same question and answer.
Units go to one site and one set whole, so nothing leaks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.examples import Example

SETS = ("train", "validation", "coordinator", "test")
HELD_OUT = ("test", "coordinator", "validation")
DEFAULT_SHARES = {"validation": 0.1, "coordinator": 0.1, "test": 0.2}
FILE_SHARES = {"validation": 0.1, "test": 0.1}
MIN_LABEL_COUNT = 10
MIN_UNITS = 8
MAX_DRAWS = 1000


@dataclass(frozen=True)
class Partition:
    """The result: `sets[site][set]` are examples; `num_moved` counts rows that followed their group."""

    sets: dict[str, dict[str, list[Example]]]
    num_groups: int
    num_moved: int


def find_units(examples: Sequence[Example], group_by: str | None) -> list[list[int]]:
    """Indices of examples, united where they share a group or a text, in order of first appearance."""
    parent = list(range(len(examples)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for index, example in enumerate(examples):
        for key in {example.group(group_by), example.text_key}:
            a, b = root(index), root(first.setdefault(key, index))
            parent[max(a, b)] = min(a, b)
    units: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        units[root(index)].append(index)
    return list(units.values())


def _order(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()


def _shuffled(examples: Sequence[Example], units: list[list[int]], seed: int) -> list[list[int]]:
    """Units in an order that depends on the seed and their texts only, not on the order of the input."""
    return sorted(units, key=lambda unit: min(_order(examples[index].text_key, seed) for index in unit))


def check_columns(examples: Sequence[Example], *columns: str | None) -> None:
    """InputError where a named column is in no example."""
    known = set().union(*(example.columns for example in examples)) if examples else set()
    for column in columns:
        if column is not None and column not in known:
            names = ", ".join(sorted(name[:40] for name in known)[:30]) or "no other column"
            raise InputError(f"the data have no column {column!r}, found {names}")


def label_of(example: Example, column: str | None) -> str:
    return example.columns.get(column, "") if column else ""


def by_iid(examples: Sequence[Example], units: list[list[int]], quotas: Mapping[str, float]) -> dict[str, list[int]]:
    """Give each unit, in the given order, to the site that lacks most towards its quota."""
    left = dict(quotas)
    result: dict[str, list[int]] = {site: [] for site in quotas}
    for unit in units:
        site = max(left, key=lambda name: left[name])
        result[site] += unit
        left[site] -= len(unit)
    return result


def by_dirichlet(
    examples: Sequence[Example],
    units: list[list[int]],
    names: Sequence[str],
    sizes: Sequence[int] | None,
    label_column: str,
    alpha: float,
    seed: int,
) -> dict[str, list[int]]:
    """For each label draw the sites' shares from Dirichlet(alpha) (Hsu et al., arXiv 1909.06335).

    With `sizes` the drawn matrix is scaled to them (iterative proportional fitting). Without, draws that
    leave a site under a tenth of an equal share or under 8 units are drawn again.
    """
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for unit in units:
        by_label[Counter(label_of(examples[i], label_column) for i in unit).most_common(1)[0][0]].append(unit)
    labels = sorted(by_label)
    totals = np.array([sum(map(len, by_label[label])) for label in labels], dtype=float)
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(MAX_DRAWS):
        wanted = generator.dirichlet([alpha] * len(names), size=len(labels)) * totals[:, None]
        if sizes is not None:
            wanted = _fit(wanted, totals, np.array(sizes, dtype=float))
        result, num_units = _fill(wanted, [by_label[label] for label in labels], names, sizes)
        fewest = min(len(members) for members in result.values())
        if sizes is not None or (fewest >= len(examples) / len(names) / 10 and min(num_units.values()) >= MIN_UNITS):
            return result
    raise InputError(
        f"no division among {len(names)} hospitals leaves each at least {MIN_UNITS} groups in {MAX_DRAWS} draws",
        hint="raise --alpha, take fewer hospitals, or give --sizes",
    )


def _fit(wanted: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Scale a positive matrix to the given row and column sums (Sinkhorn, 1967)."""
    wanted = np.maximum(wanted, 1e-9)
    columns = columns * rows.sum() / columns.sum()
    for _ in range(500):
        wanted = wanted * (columns / wanted.sum(axis=0))
        wanted = wanted * (rows / wanted.sum(axis=1))[:, None]
    return wanted


def _fill(
    wanted: np.ndarray, by_label: list[list[list[int]]], names: Sequence[str], sizes: Sequence[int] | None
) -> tuple[dict[str, list[int]], dict[str, int]]:
    result: dict[str, list[int]] = {name: [] for name in names}
    num_units = dict.fromkeys(names, 0)
    room = np.array(sizes if sizes is not None else [np.inf] * len(names), dtype=float)
    for row, units in zip(wanted, by_label, strict=True):
        left = row.copy()
        for unit in units:
            open_sites = np.where(room > 0, left, -np.inf)
            site = int(np.argmax(open_sites if np.isfinite(open_sites).any() else left))
            result[names[site]] += unit
            num_units[names[site]] += 1
            left[site] -= len(unit)
            room[site] -= len(unit)
    return result, num_units


def by_column(
    examples: Sequence[Example],
    units: list[list[int]],
    names: Sequence[str],
    column: str,
    assign: Mapping[str, str] | None,
) -> tuple[dict[str, list[int]], int]:
    """Give each value of a column to a site; a unit that spans sites goes to the one that holds most of it.

    Without `assign` the most frequent value goes first, each to the site with the fewest examples so far.
    Returns the sites' indices and how many examples moved with their unit.
    """
    counts = Counter(label_of(example, column) for example in examples)
    if assign is None:
        if len(counts) < len(names):
            raise InputError(f"column {column!r} has {len(counts)} values, fewer than {len(names)} hospitals")
        assign = {}
        load = dict.fromkeys(sorted(names), 0)
        for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            assign[value] = min(load, key=lambda name: load[name])
            load[assign[value]] += count
    else:
        missing = {value: count for value, count in counts.items() if value not in assign}
        if missing:
            shown = [value for value in sorted(missing) if missing[value] >= MIN_LABEL_COUNT]
            raise InputError(
                f"--assign leaves {len(missing)} values of column {column!r} ({sum(missing.values())} examples) "
                f"without a hospital{': ' if shown else ''}{', '.join(repr(value[:60]) for value in shown[:20])}"
            )
        for value in assign:
            if value not in counts:
                raise InputError(f"--assign names {value[:60]!r}, which is no value of column {column!r}")
    result: dict[str, list[int]] = {name: [] for name in names}
    moved = 0
    for unit in units:
        votes = Counter(assign[label_of(examples[index], column)] for index in unit)
        site = min(votes, key=lambda name: (-votes[name], name))
        result[site] += unit
        moved += len(unit) - votes[site]
    return result, moved


def into_sets(
    examples: Sequence[Example], units: list[list[int]], shares: Mapping[str, float], site: str
) -> dict[str, list[Example]]:
    """Divide one site's units, in the given order, into the sets: each held-out set gets its share or a little more."""
    wanted = [name for name in HELD_OUT if shares.get(name, 0) > 0]
    if len(units) <= len(wanted):
        raise InputError(
            f"site {site} holds {len(units)} groups, too few for {len(wanted) + 1} sets without a leak",
            hint="take fewer hospitals, more data, or another --group-by",
        )
    total = sum(map(len, units))
    queue = list(units)
    chosen: dict[str, list[int]] = {name: [] for name in SETS}
    for position, name in enumerate(wanted):
        target = shares[name] * total
        while len(queue) > len(wanted) - position and (
            not chosen[name] or len(chosen[name]) + len(queue[0]) / 2 <= target
        ):
            chosen[name] += queue.pop(0)
    chosen["train"] = [index for unit in queue for index in unit]
    return {name: [examples[index] for index in sorted(indices)] for name, indices in chosen.items()}


def partition(
    examples: Sequence[Example],
    names: Sequence[str],
    method: str,
    *,
    column: str | None = None,
    label_column: str | None = None,
    assign: Mapping[str, str] | None = None,
    alpha: float = 0.5,
    sizes: Sequence[int] | None = None,
    group_by: str | None = None,
    shares: Mapping[str, float] = DEFAULT_SHARES,
    seed: int = 0,
) -> Partition:
    """Divide `examples` among the sites `names` by "iid", "dirichlet" or "column", then each into sets.

    `sizes` count what each site holds before its held-out sets are taken; they may add up to fewer examples
    than there are, then the rest is left out (as whole units, last in the shuffled order).
    """
    check_columns(examples, column, label_column, group_by)
    if sizes is not None and len(sizes) != len(names):
        raise UsageError(f"--sizes gives {len(sizes)} numbers for {len(names)} hospitals")
    if sizes is not None and sum(sizes) > len(examples):
        raise InputError(f"--sizes add up to {sum(sizes)}, but there are {len(examples)} examples")
    units = _shuffled(examples, find_units(examples, group_by), seed)
    num_groups, moved = len(units), 0
    if sizes is not None:
        units = _first(units, sum(sizes))
    if method == "iid":
        quotas = sizes if sizes is not None else [len(examples) / len(names)] * len(names)
        members = by_iid(examples, units, dict(zip(names, quotas, strict=True)))
    elif method == "dirichlet":
        assert label_column is not None
        members = by_dirichlet(examples, units, names, sizes, label_column, alpha, seed)
    else:
        assert column is not None
        members, moved = by_column(examples, units, names, column, assign)
    for name in names:
        if not members[name]:
            raise InputError(f"site {name} would get no example")
    home = {index: name for name, indices in members.items() for index in indices}
    by_site: dict[str, list[list[int]]] = {name: [] for name in names}
    for unit in units:
        by_site[home[unit[0]]].append(unit)
    sets = {name: into_sets(examples, by_site[name], shares, name) for name in names}
    return Partition(sets, num_groups, moved)


def _first(units: list[list[int]], total: int) -> list[list[int]]:
    """As many units from the front as hold about `total` examples."""
    kept, count = [], 0
    for unit in units:
        if count + len(unit) / 2 <= total:
            kept.append(unit)
            count += len(unit)
    return kept


def divide_file(
    examples: Sequence[Example], group_by: str | None, seed: int, shares: Mapping[str, float] = FILE_SHARES
) -> tuple[dict[str, list[Example]], int]:
    """Divide a hospital's own file into train, validation and test by a keyed hash of each unit.

    A file that grows moves no example from one set to another, unless new rows join two groups into one.
    Returns the sets and the number of units.
    """
    check_columns(examples, group_by)
    units = find_units(examples, group_by)
    sets: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for unit in units:
        place = min(int(_order(examples[index].group(group_by), seed)[:13], 16) / 16**13 for index in unit)
        # The least of several hashes is not uniform: hash it once more.
        place = int(_order(repr(place), seed)[:13], 16) / 16**13
        name = "test" if place < shares["test"] else "train"
        if shares["test"] <= place < shares["test"] + shares["validation"]:
            name = "validation"
        sets[name] += [examples[index] for index in unit]
    return sets, len(units)


def histogram(examples: Sequence[Example], column: str | None) -> dict[str, int]:
    """Counts of a label column; values seen fewer than 10 times are pooled as "other"."""
    result: Counter[str] = Counter()
    for label, count in Counter(label_of(example, column) for example in examples).items():
        result[label or "none" if count >= MIN_LABEL_COUNT else "other"] += count
    return dict(sorted(result.items()))


def jensen_shannon(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon distance between two histograms: 0 (equal) to 1 (disjoint); Endres & Schindelin 2003."""
    labels = sorted({*first, *second})
    p = np.array([first.get(label, 0) for label in labels], dtype=float)
    q = np.array([second.get(label, 0) for label in labels], dtype=float)
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / middle[some])))

    return float(np.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2)))


def count_leaks(folder: Path, names: Sequence[str], group_by: str | None) -> dict[str, int]:
    """Read the written files again, by a path of its own, and count what is in two sets.

    Returns the number of rows, and of texts and groups that stand in more than one file.
    """
    files = [folder / name / f"{part}.jsonl" for name in names for part in ("train", "validation")]
    files += [folder / "coordinator.jsonl", folder / "test.jsonl"]
    seen: dict[str, dict[str, set[int]]] = {"texts": defaultdict(set), "groups": defaultdict(set)}
    rows = 0
    for number, path in enumerate(files):
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            if line:
                row = json.loads(line)
                rows += 1
                text = " ".join((row["question"] + " \x1f " + row["answer"]).split()).casefold()
                seen["texts"][text].add(number)
                if group_by and row.get(group_by):
                    seen["groups"][row[group_by]].add(number)
    shared = {f"{kind}_in_two_sets": sum(len(at) > 1 for at in where.values()) for kind, where in seen.items()}
    return {"rows": rows} | shared
