"""Divide rows among sites, and each site's rows into train, validation, coordinator and test sets.

What may not be torn apart is a *unit*: rows that share a group, are the same text or nearly so. Units go to
one site and one set whole, so nothing leaks. Everything here works on numbers; no text is looked at. It is
one file because every method of division shares the same few arrays.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data.near_duplicates import merge
from fedmed_cli.data.row_index import Codes, Index
from fedmed_cli.errors import InputError, UsageError

SETS = ("train", "validation", "coordinator", "test")
HELD_OUT = ("test", "coordinator", "validation")
METHODS = ("iid", "quantity", "dirichlet", "pathological", "column")
DEFAULT_SHARES = {"validation": 0.1, "coordinator": 0.1, "test": 0.2}
FILE_SHARES = {"validation": 0.1, "test": 0.1}
MIN_LABEL_COUNT = 10
MIN_UNITS = 8
MAX_DRAWS = 1000
NOWHERE = -1

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Units:
    """Units in their drawn order. `unit[row]` is a row's unit, `size[unit]` its rows, `sequence` the units' order."""

    unit: Ints
    size: Ints
    sequence: Ints

    def members(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows sorted by unit, and where each unit's rows start."""
        rows = np.argsort(self.unit, kind="stable")
        return rows, np.concatenate([[0], np.cumsum(self.size, dtype=np.int64)])


@dataclass(frozen=True)
class Partition:
    """The result. `places[row]` is site * 4 + set, or -1 for the rest; `num_moved` counts rows that followed others."""

    places: Ints
    num_units: int
    num_moved: int


def roots_of(*keys: NDArray[np.uint64] | None, size: int) -> Ints:
    """For each row the first row that it is united with by an equal key; a key of 0 unites nothing."""
    roots = np.arange(size, dtype=np.int32)
    for key in keys:
        if key is not None:
            order = np.argsort(key, kind="stable").astype(np.int32)
            ordered = key[order]
            at = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
            if len(at):
                roots = merge(roots, order[at], order[at + 1])
    return roots


def make_units(roots: Ints, order: NDArray[np.uint64]) -> Units:
    """Units numbered by their first rows, in an order that depends on texts and seed, not on the input's order."""
    alone = np.arange(len(roots), dtype=np.int32)
    if np.array_equal(roots, alone):  # nothing is united, the common case of much data: no sorting
        return Units(alone, np.ones(len(roots), dtype=np.int32), np.argsort(order, kind="stable").astype(np.int32))
    firsts, unit = np.unique(roots, return_inverse=True)
    rows = np.argsort(unit, kind="stable")
    starts = np.flatnonzero(np.diff(unit[rows], prepend=-1))
    least = np.minimum.reduceat(order[rows], starts)
    return Units(
        unit.astype(np.int32),
        np.bincount(unit, minlength=len(firsts)).astype(np.int32),
        np.argsort(least, kind="stable").astype(np.int32),
    )


def partition(
    index: Index,
    roots: Ints,
    names: Sequence[str],
    method: str,
    *,
    assign: Mapping[str, str] | None = None,
    alpha: float = 0.5,
    sizes: Sequence[int] | None = None,
    min_size: int | None = None,
    labels_per_site: int = 2,
    shares: Mapping[str, float] = DEFAULT_SHARES,
    seed: int = 0,
) -> Partition:
    """Divide the rows among the sites `names` by one of METHODS, then each site's into sets.

    `sizes` count what each site holds before its held-out sets are taken; they may add up to fewer rows than
    there are, then the rest is left out (as whole units, last in the drawn order).
    """
    total = len(index)
    if sizes is not None and len(sizes) != len(names):
        raise UsageError(f"--sizes gives {len(sizes)} numbers for {len(names)} hospitals")
    if sizes is not None and sum(sizes) > total:
        raise InputError(f"--sizes add up to {sum(sizes)}, but there are {total} examples")
    units = make_units(roots, index.order)
    sequence, moved = units.sequence, 0
    if sizes is not None:
        sequence = _first(units, sum(sizes))
    if method in ("iid", "quantity"):
        quotas = [float(size) for size in sizes] if sizes is not None else [total / len(names)] * len(names)
        if method == "quantity":
            quotas = _skewed(total, len(names), alpha, min_size, seed)
        home = by_quota(units, sequence, quotas)
    elif method == "dirichlet":
        assert index.label is not None
        home = by_dirichlet(units, sequence, index.label, len(names), sizes, min_size, alpha, seed)
    elif method == "pathological":
        assert index.label is not None
        home = by_few_labels(units, sequence, index.label, len(names), labels_per_site, seed)
    else:
        assert index.value is not None
        home, moved = by_column(units, sequence, index.value, names, assign)
    site_of = np.full(len(units.size), NOWHERE, dtype=np.int32)
    site_of[sequence] = home
    held = np.bincount(home, weights=units.size[sequence], minlength=len(names))
    for name, count in zip(names, held, strict=True):
        if not count:
            raise InputError(f"site {name} would get no example")
        if min_size is not None and count < min_size:
            raise InputError(f"site {name} would get {int(count)} examples, fewer than --min-size {min_size}")
    set_of = np.zeros(len(units.size), dtype=np.int32)
    by_site = np.argsort(home, kind="stable")
    bounds = np.searchsorted(home[by_site], np.arange(len(names) + 1))
    for number, name in enumerate(names):
        own = sequence[by_site[bounds[number] : bounds[number + 1]]]
        set_of[own] = into_sets(units.size[own], shares, name)
    place = np.where(site_of == NOWHERE, NOWHERE, site_of * len(SETS) + set_of).astype(np.int32)
    return Partition(place[units.unit], len(units.size), moved)


def _first(units: Units, total: int) -> Ints:
    """As many units from the front as hold about `total` rows."""
    kept, count = [], 0
    for unit, size in zip(units.sequence.tolist(), units.size[units.sequence].tolist(), strict=True):
        if count + size / 2 <= total:
            kept.append(unit)
            count += size
    return np.array(kept, dtype=np.int32)


# --- units to sites: each returns a site number for every unit of `sequence` -------------------------


def by_quota(units: Units, sequence: Ints, quotas: Sequence[float]) -> Ints:
    """Give each unit, in order, to the site that lacks most towards its quota."""
    heap = [(-quota, site) for site, quota in enumerate(quotas)]
    heapq.heapify(heap)
    home = np.empty(len(sequence), dtype=np.int32)
    for at, size in enumerate(units.size[sequence].tolist()):
        left, site = heap[0]
        home[at] = site
        heapq.heapreplace(heap, (left + size, site))
    return home


def _skewed(total: int, count: int, alpha: float, min_size: int | None, seed: int) -> list[float]:
    """Sizes of sites drawn from one symmetric Dirichlet(alpha), drawn again while a site has too few rows."""
    generator = np.random.Generator(np.random.Philox(seed))
    least = min_size if min_size is not None else max(MIN_UNITS, total / count / 100)
    for _ in range(MAX_DRAWS):
        quotas = generator.dirichlet([alpha] * count) * total
        if quotas.min() >= least:
            return [float(quota) for quota in quotas]
    raise _no_division(count, least)


def _no_division(count: int, least: float) -> InputError:
    return InputError(
        f"no division among {count} hospitals leaves each at least {least:.0f} examples in {MAX_DRAWS} draws",
        hint="raise --alpha, take fewer hospitals, or give --sizes",
    )


def unit_labels(units: Units, sequence: Ints, codes: Codes) -> Ints:
    """The commonest label of each unit of `sequence`; the first to appear among equally common ones."""
    rows, starts = units.members()
    labels = codes.codes[rows[starts[:-1]]]
    for unit in np.flatnonzero(units.size > 1).tolist():
        found = codes.codes[rows[starts[unit] : starts[unit + 1]]]
        if (found != found[0]).any():
            labels[unit] = Counter(found.tolist()).most_common(1)[0][0]
    return labels[sequence]


def _by_label(labels: Ints, codes: Codes) -> tuple[list[int], list[NDArray[np.int64]]]:
    """The labels that occur, sorted by name, and the positions of their units in order."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    parts = dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))
    sorted_labels = sorted(parts, key=lambda label: codes.names[label])
    return sorted_labels, [parts[label] for label in sorted_labels]


def by_dirichlet(
    units: Units,
    sequence: Ints,
    codes: Codes,
    count: int,
    sizes: Sequence[int] | None,
    min_size: int | None,
    alpha: float,
    seed: int,
) -> Ints:
    """For each label draw the sites' shares from Dirichlet(alpha) (Hsu et al., arXiv 1909.06335).

    With `sizes` the drawn matrix is scaled to them (iterative proportional fitting). Without, draws that
    leave a site under `min_size` (default: a tenth of an equal share) or under 8 units are drawn again.
    """
    _, parts = _by_label(unit_labels(units, sequence, codes), codes)
    unit_sizes = units.size[sequence]
    totals = np.array([unit_sizes[part].sum() for part in parts], dtype=float)
    least = min_size if min_size is not None else len(units.unit) / count / 10
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(MAX_DRAWS):
        wanted = generator.dirichlet([alpha] * count, size=len(parts)) * totals[:, None]
        if sizes is not None:
            wanted = _fit(wanted, totals, np.array(sizes, dtype=float))
        # What the greedy filling gives differs by less than a unit a label: hopeless draws need not be filled.
        elif wanted.sum(axis=0).min() + len(parts) * (unit_sizes.max() + 1) < least:
            continue
        home = _fill(wanted, parts, unit_sizes, sizes)
        held = np.bincount(home, weights=unit_sizes, minlength=count)
        if sizes is not None or (held.min() >= least and np.bincount(home, minlength=count).min() >= MIN_UNITS):
            return home
    raise _no_division(count, max(least, MIN_UNITS))


def _fit(wanted: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale a positive matrix to the given row and column sums (Sinkhorn, 1967)."""
    wanted = np.maximum(wanted, 1e-9)
    columns = columns * rows.sum() / columns.sum()
    for _ in range(500):
        wanted = wanted * (columns / wanted.sum(axis=0))
        wanted = wanted * (rows / wanted.sum(axis=1))[:, None]
    return wanted


def _fill(wanted: NDArray[np.float64], parts: list[NDArray[np.int64]], sizes: Ints, room: Sequence[int] | None) -> Ints:
    """Label by label give each unit to the site that lacks most of it and has room; where none has, to any."""
    home = np.empty(len(sizes), dtype=np.int32)
    left_over = [float(size) for size in room] if room is not None else [np.inf] * wanted.shape[1]
    for row, part in zip(wanted.tolist(), parts, strict=True):
        if room is None and len(part) and (sizes[part] == sizes[part[0]]).all():
            home[part] = _fill_evenly(np.array(row), len(part), float(sizes[part[0]]))
            continue
        all_left = list(row)
        heap = [(-left, site) for site, left in enumerate(row) if left_over[site] > 0]
        heapq.heapify(heap)
        chosen = []
        for size in sizes[part].tolist():
            while heap and left_over[heap[0][1]] <= 0:
                heapq.heappop(heap)
            if heap:
                left, site = heap[0]
                heapq.heapreplace(heap, (left + size, site))
            else:
                site = max(range(len(all_left)), key=all_left.__getitem__)
            all_left[site] -= size
            left_over[site] -= size
            chosen.append(site)
        home[part] = chosen
    return home


def _fill_evenly(wanted: NDArray[np.float64], count: int, size: float) -> NDArray[np.int64]:
    """`_fill` for one label and `count` units of the same size: the greatest lacks of all sites, in order."""
    least = (wanted.sum() - count * size) / len(wanted) - size  # where every site lacks less, all units are given
    turns = np.maximum(np.ceil((wanted - least) / size), 0).astype(np.int64)
    sites = np.repeat(np.arange(len(wanted)), turns)
    turn = np.arange(len(sites)) - np.repeat(np.cumsum(turns) - turns, turns)
    return sites[np.argsort(-(wanted[sites] - turn * size), kind="stable")[:count]]


def by_few_labels(units: Units, sequence: Ints, codes: Codes, count: int, each: int, seed: int) -> Ints:
    """Each site gets `each` labels, every label at least one site, which share it evenly (McMahan et al. 2017)."""
    labels, parts = _by_label(unit_labels(units, sequence, codes), codes)
    if each > len(labels):
        raise InputError(f"--labels-per-site is {each}, but there are {len(labels)} labels")
    if each * count < len(labels):
        raise InputError(
            f"{count} hospitals with {each} labels each leave some of {len(labels)} labels without a hospital",
            hint=f"take --labels-per-site {-(-len(labels) // count)} or more, or more hospitals",
        )
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.permutation(len(labels)).tolist()
    takers: list[list[int]] = [[] for _ in labels]
    for at in range(each * count):
        takers[drawn[at % len(labels)]].append(at // each)
    home = np.empty(len(sequence), dtype=np.int32)
    for part, sites in zip(parts, takers, strict=True):
        sizes = units.size[sequence[part]]
        heap = [(-float(sizes.sum()) / len(sites), site) for site in sites]
        heapq.heapify(heap)
        for at, size in zip(part.tolist(), sizes.tolist(), strict=True):
            left, site = heap[0]
            home[at] = site
            heapq.heapreplace(heap, (left + size, site))
    return home


def by_column(
    units: Units, sequence: Ints, codes: Codes, names: Sequence[str], assign: Mapping[str, str] | None
) -> tuple[Ints, int]:
    """Give each value of a column to a site; a unit that spans sites goes to the one that holds most of it.

    Without `assign` the most frequent value goes first, each to the site with the fewest rows so far.
    Returns the sites and how many rows moved with their unit.
    """
    totals = np.bincount(codes.codes, minlength=len(codes.names)).tolist()
    counts = {value: total for value, total in zip(codes.names, totals, strict=True) if total}
    if assign is None:
        if len(counts) < len(names):
            raise InputError(f"the column has {len(counts)} values, fewer than {len(names)} hospitals")
        assign = {}
        load = dict.fromkeys(sorted(names), 0)
        for value, total in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            assign[value] = min(load, key=lambda name: load[name])
            load[assign[value]] += total
    else:
        _check_assign(assign, counts)
    site_of_value = np.array([names.index(assign.get(value, names[0])) for value in codes.names], dtype=np.int32)
    rows, starts = units.members()
    sites = site_of_value[codes.codes[rows]]
    home = sites[starts[:-1]].copy()
    moved = 0
    for unit in np.flatnonzero(units.size > 1).tolist():
        own = sites[starts[unit] : starts[unit + 1]]
        if (own != own[0]).any():
            votes = Counter(own.tolist())
            home[unit] = min(votes, key=lambda site: (-votes[site], names[site]))
            moved += len(own) - votes[int(home[unit])]
    return home[sequence], moved


def _check_assign(assign: Mapping[str, str], counts: Mapping[str, int]) -> None:
    missing = {value: total for value, total in counts.items() if value not in assign}
    if missing:
        # A rare value may point at a person: those are counted, not named.
        shown = [value for value in sorted(missing) if missing[value] >= MIN_LABEL_COUNT]
        raise InputError(
            f"--assign leaves {len(missing)} values of the column ({sum(missing.values())} examples) "
            f"without a hospital{': ' if shown else ''}{', '.join(repr(value[:60]) for value in shown[:20])}"
        )
    for value in assign:
        if value not in counts:
            raise InputError(f"--assign names {value[:60]!r}, which is not a value of the column")


def into_sets(sizes: Ints, shares: Mapping[str, float], site: str) -> Ints:
    """The set number of each of a site's units, given in order: each held-out set gets its share or a little more."""
    wanted = [name for name in HELD_OUT if shares.get(name, 0) > 0]
    if len(sizes) <= len(wanted):
        raise InputError(
            f"site {site} holds {len(sizes)} groups, too few for {len(wanted) + 1} sets without a leak",
            hint="take fewer hospitals, more data, another --group-by, or a higher --near-duplicates",
        )
    total = int(sizes.sum())
    result = np.zeros(len(sizes), dtype=np.int32)
    at = 0
    for position, name in enumerate(wanted):
        count = 0
        while len(sizes) - at > len(wanted) - position and (
            count == 0 or count + int(sizes[at]) / 2 <= shares[name] * total
        ):
            result[at] = SETS.index(name)
            count += int(sizes[at])
            at += 1
    return result


# --- a hospital's own file ---------------------------------------------------------------------------


def keyed_hash(key: str, seed: int) -> str:
    """SHA-256 over the seed and a key, as hexadecimal digits."""
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()


def divide_file(
    roots: Ints, groups: Sequence[str], seed: int, shares: Mapping[str, float] = FILE_SHARES
) -> tuple[dict[str, list[int]], int]:
    """Divide a hospital's own rows into train, validation and test by a keyed hash of each unit.

    `groups` names each row's group, or its text. A file that grows moves no row from one set to another,
    unless new rows join two units into one. Returns the sets' rows and the number of units.
    """
    members: dict[int, list[int]] = {}
    for row, root in enumerate(roots.tolist()):
        members.setdefault(root, []).append(row)
    sets: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for unit in members.values():
        place = min(int(keyed_hash(groups[row], seed)[:13], 16) / 16**13 for row in unit)
        # The least of several hashes is not uniform: hash it once more.
        place = int(keyed_hash(repr(place), seed)[:13], 16) / 16**13
        name = "test" if place < shares["test"] else "train"
        if shares["test"] <= place < shares["test"] + shares["validation"]:
            name = "validation"
        sets[name] += unit
    return sets, len(members)


# --- what it is made of -------------------------------------------------------------------------------


def histogram(codes: Codes | None, chosen: NDArray[np.bool_]) -> dict[str, int]:
    """Counts of the labels of the chosen rows; values seen fewer than 10 times are pooled as "other"."""
    if codes is None:
        total = int(chosen.sum())
        return {"none" if total >= MIN_LABEL_COUNT else "other": total} if total else {}
    result: Counter[str] = Counter()
    for name, count in zip(codes.names, np.bincount(codes.codes[chosen], minlength=len(codes.names)), strict=True):
        if count:
            result[(name or "none") if count >= MIN_LABEL_COUNT else "other"] += int(count)
    return dict(sorted(result.items()))


def jensen_shannon(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon distance between two histograms: 0 (equal) to 1 (disjoint); Endres & Schindelin 2003."""
    labels = sorted({*first, *second})
    p = np.array([first.get(label, 0) for label in labels], dtype=float)
    q = np.array([second.get(label, 0) for label in labels], dtype=float)
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    middle = (p + q) / 2

    def divergence(a: NDArray[np.float64]) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / middle[some])))

    return float(np.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2)))
