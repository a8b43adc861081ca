"""Divide rows among sites, and each site's rows into train, validation, coordinator and test sets.

Leakage groups go to one site and one set whole, so nothing leaks. Everything here works on numbers; no text is
looked at.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data.leakage_groups import Groups, Ints, number_groups
from fedmed_cli.data.row_index import Codes, Index
from fedmed_cli.data.split_options import SplitOptions
from fedmed_cli.errors import InputError, UsageError

SETS = ("train", "validation", "coordinator", "test")
HELD_OUT = ("test", "coordinator", "validation")
MIN_GROUPS = 8
MAX_DRAWS = 1000
NOWHERE = -1


@dataclass(frozen=True)
class Partition:
    """The result. `assignment[row]` is site * 4 + set, or -1 for the rest; `num_moved` rows followed others."""

    assignment: Ints
    num_groups: int
    num_moved: int


def partition(index: Index, options: SplitOptions, seed: int) -> Partition:
    """Divide the rows among the sites, then each site's into sets.

    `options.sizes` count what each site holds before its held-out sets are taken; they may add up to fewer rows
    than there are, then the rest is left out (as whole groups, last in the drawn order).
    """
    sizes, names = options.sizes, options.names
    if sizes is not None and len(sizes) != len(names):
        raise UsageError(f"--sizes gives {len(sizes)} numbers for {len(names)} hospitals")
    if sizes is not None and sum(sizes) > len(index):
        raise InputError(f"--sizes add up to {sum(sizes)}, but there are {len(index)} examples")
    groups = number_groups(index.group_of, index.order)
    sequence = groups.sequence if sizes is None else _take_first(groups, sum(sizes))
    site_of, num_moved = _divide_among_sites(groups, sequence, index, options, seed)
    held = np.bincount(site_of, weights=groups.size[sequence], minlength=len(names))
    for name, count in zip(names, held, strict=True):
        if not count:
            raise InputError(f"site {name} would get no example")
        if options.min_size is not None and count < options.min_size:
            raise InputError(f"site {name} would get {int(count)} examples, fewer than --min-size {options.min_size}")
    place_of = np.full(len(groups.size), NOWHERE, dtype=np.int32)
    for number, name in enumerate(names):
        members = sequence[site_of == number]
        place_of[members] = number * len(SETS) + divide_into_sets(groups.size[members], options.shares, name)
    return Partition(place_of[groups.number], len(groups.size), num_moved)


def _take_first(groups: Groups, total: int) -> Ints:
    """As many groups from the front as hold about `total` rows."""
    chosen, count = [], 0
    for group, size in zip(groups.sequence.tolist(), groups.size[groups.sequence].tolist(), strict=True):
        if count + size / 2 <= total:
            chosen.append(group)
            count += size
    return np.array(chosen, dtype=np.int32)


def _divide_among_sites(
    groups: Groups, sequence: Ints, index: Index, options: SplitOptions, seed: int
) -> tuple[Ints, int]:
    """The site of each group of `sequence`, and how many rows moved with their group."""
    count, sizes = len(options.names), options.sizes
    if options.method == "column":
        assert index.value is not None
        return by_column(groups, sequence, index.value, options.names, options.assign)
    if options.method == "pathological":
        assert index.label is not None
        return by_few_labels(groups, sequence, index.label, count, options.labels_per_site, seed), 0
    if options.method == "dirichlet":
        assert index.label is not None
        return by_dirichlet(groups, sequence, index.label, count, sizes, options.min_size, options.alpha, seed), 0
    if options.method == "quantity":
        quotas = draw_quotas(len(index), count, options.alpha, options.min_size, seed)
    else:
        quotas = [len(index) / count] * count if sizes is None else [float(size) for size in sizes]
    return fill(groups.size[sequence], dict(enumerate(quotas))), 0


# --- groups to sites: each returns a site's number for every group of `sequence` -----------------------


def fill(sizes: Ints, wanted: Mapping[int, float], room: dict[int, float] | None = None) -> Ints:
    """Give each group, in order, to the site that lacks most of the rows it wants; the first of equals.

    `room` counts the rows that each site may still take, and is updated. A site without room gets a group only
    where none has any.
    """
    lacks = dict(wanted)
    heap = [(-lack, site) for site, lack in lacks.items() if room is None or room[site] > 0]
    heapq.heapify(heap)
    site_of = np.empty(len(sizes), dtype=np.int32)
    for at, size in enumerate(sizes.tolist()):
        while heap and room is not None and room[heap[0][1]] <= 0:
            heapq.heappop(heap)
        site = heap[0][1] if heap else max(lacks, key=lacks.__getitem__)
        lacks[site] -= size
        if heap:
            heapq.heapreplace(heap, (-lacks[site], site))
        if room is not None:
            room[site] -= size
        site_of[at] = site
    return site_of


def draw_quotas(total: int, count: int, alpha: float, min_size: int | None, seed: int) -> list[float]:
    """Sizes of sites drawn from one symmetric Dirichlet(alpha), drawn again while a site has too few rows."""
    generator = np.random.Generator(np.random.Philox(seed))
    least = min_size if min_size is not None else max(MIN_GROUPS, total / count / 100)
    for _ in range(MAX_DRAWS):
        quotas = generator.dirichlet([alpha] * count) * total
        if quotas.min() >= least:
            return [float(quota) for quota in quotas]
    raise _division_error(count, least)


def _division_error(count: int, least: float) -> InputError:
    return InputError(
        f"no division among {count} hospitals leaves each at least {least:.0f} examples in {MAX_DRAWS} draws",
        hint="raise --alpha, take fewer hospitals, or give --sizes",
    )


def group_labels(groups: Groups, sequence: Ints, codes: Codes) -> Ints:
    """The commonest label of each group of `sequence`; the first to appear among equally common ones."""
    labels, votes = _count_values(groups, codes.codes)
    for group, counts in votes.items():
        labels[group] = counts.most_common(1)[0][0]
    return labels[sequence]


def _count_values(groups: Groups, values: Ints) -> tuple[Ints, dict[int, Counter[int]]]:
    """The value of each group's first row, and for the groups with several values how often they have each."""
    rows, starts = groups.members()
    counts = {}
    for group in np.flatnonzero(groups.size > 1).tolist():
        members = values[rows[starts[group] : starts[group + 1]]]
        if (members != members[0]).any():
            counts[group] = Counter(members.tolist())
    return values[rows[starts[:-1]]], counts


def _split_by_label(groups: Groups, sequence: Ints, codes: Codes) -> list[NDArray[np.int64]]:
    """For each label that occurs, sorted by name, the positions in `sequence` of its groups."""
    labels = group_labels(groups, sequence, codes)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    parts = dict(zip(present.tolist(), np.split(order, starts[1:]), strict=True))
    return [parts[label] for label in sorted(parts, key=lambda label: codes.names[label])]


def by_dirichlet(
    groups: Groups,
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
    leave a site under `min_size` (default: a tenth of an equal share) or under 8 groups are drawn again.
    """
    parts = _split_by_label(groups, sequence, codes)
    group_sizes = groups.size[sequence]
    totals = np.array([group_sizes[part].sum() for part in parts], dtype=float)
    least = min_size if min_size is not None else len(groups.number) / count / 10
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(MAX_DRAWS):
        wanted = generator.dirichlet([alpha] * count, size=len(parts)) * totals[:, None]
        if sizes is not None:
            wanted = _fit_to_sums(wanted, totals, np.array(sizes, dtype=float))
        # What the greedy filling gives differs by less than a group a label: hopeless draws need not be filled.
        elif wanted.sum(axis=0).min() + len(parts) * (group_sizes.max() + 1) < least:
            continue
        site_of = _fill_by_label(wanted, parts, group_sizes, sizes)
        held = np.bincount(site_of, weights=group_sizes, minlength=count)
        if sizes is not None or (held.min() >= least and np.bincount(site_of, minlength=count).min() >= MIN_GROUPS):
            return site_of
    raise _division_error(count, max(least, MIN_GROUPS))


def _fit_to_sums(
    wanted: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale a positive matrix to the given row and column sums (Sinkhorn, 1967)."""
    wanted = np.maximum(wanted, 1e-9)
    columns = columns * rows.sum() / columns.sum()
    for _ in range(500):
        wanted = wanted * (columns / wanted.sum(axis=0))
        wanted = wanted * (rows / wanted.sum(axis=1))[:, None]
    return wanted


def _fill_by_label(
    wanted: NDArray[np.float64], parts: list[NDArray[np.int64]], sizes: Ints, room: Sequence[int] | None
) -> Ints:
    """`fill` label by label; `room` counts the rows that each site may take of all labels."""
    site_of = np.empty(len(sizes), dtype=np.int32)
    rows_left = {site: float(size) for site, size in enumerate(room)} if room is not None else None
    for row, part in zip(wanted, parts, strict=True):
        if room is None and len(part) and (sizes[part] == sizes[part[0]]).all():
            site_of[part] = _fill_evenly(row, len(part), float(sizes[part[0]]))
        else:
            site_of[part] = fill(sizes[part], dict(enumerate(row.tolist())), rows_left)
    return site_of


def _fill_evenly(wanted: NDArray[np.float64], count: int, size: float) -> NDArray[np.int64]:
    """`fill` for `count` groups of the same size: the greatest lacks of all sites, in order."""
    least = (wanted.sum() - count * size) / len(wanted) - size  # where every site lacks less, all groups are given
    turns = np.maximum(np.ceil((wanted - least) / size), 0).astype(np.int64)
    sites = np.repeat(np.arange(len(wanted)), turns)
    turn = np.arange(len(sites)) - np.repeat(np.cumsum(turns) - turns, turns)
    return sites[np.argsort(-(wanted[sites] - turn * size), kind="stable")[:count]]


def by_few_labels(groups: Groups, sequence: Ints, codes: Codes, count: int, each: int, seed: int) -> Ints:
    """Each site gets `each` labels, every label at least one site, which share it evenly (McMahan et al. 2017)."""
    parts = _split_by_label(groups, sequence, codes)
    if each > len(parts):
        raise InputError(f"--labels-per-site is {each}, but there are {len(parts)} labels")
    if each * count < len(parts):
        raise InputError(
            f"{count} hospitals with {each} labels each leave some of {len(parts)} labels without a hospital",
            hint=f"take --labels-per-site {-(-len(parts) // count)} or more, or more hospitals",
        )
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.permutation(len(parts)).tolist()
    takers: list[list[int]] = [[] for _ in parts]
    for at in range(each * count):
        takers[drawn[at % len(parts)]].append(at // each)
    site_of = np.empty(len(sequence), dtype=np.int32)
    for part, sites in zip(parts, takers, strict=True):
        sizes = groups.size[sequence[part]]
        site_of[part] = fill(sizes, dict.fromkeys(sites, float(sizes.sum()) / len(sites)))
    return site_of


def by_column(
    groups: Groups,
    sequence: Ints,
    codes: Codes,
    names: Sequence[str],
    assign: Mapping[str, Sequence[str]] | None,
) -> tuple[Ints, int]:
    """Each group goes with its values of a column; one that spans sites goes to the site that holds most of it.

    `assign` gives each site's values. Returns the sites and how many rows moved with their group.
    """
    site_of, votes = _count_values(groups, _assign_values(codes, names, assign)[codes.codes])
    num_moved = 0
    for group, counts in votes.items():
        winner = min(counts, key=lambda site: (-counts[site], names[site]))
        site_of[group] = winner
        num_moved += counts.total() - counts[winner]
    return site_of[sequence], num_moved


def _assign_values(codes: Codes, names: Sequence[str], assign: Mapping[str, Sequence[str]] | None) -> Ints:
    """The site's number of each of the codes' values.

    Without `assign` the most frequent value goes first, each to the site with the fewest rows so far.
    """
    totals = np.bincount(codes.codes, minlength=len(codes.names)).tolist()
    counts = {value: total for value, total in zip(codes.names, totals, strict=True) if total}
    if assign:
        name_of = {value: name for name, values in assign.items() for value in values}
        _check_assigned(name_of, counts)
    else:
        if len(counts) < len(names):
            raise InputError(f"the column has {len(counts)} values, fewer than {len(names)} hospitals")
        name_of = {}
        load = dict.fromkeys(sorted(names), 0)
        for value, total in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            name_of[value] = min(load, key=load.__getitem__)
            load[name_of[value]] += total
    return np.array([names.index(name_of.get(value, names[0])) for value in codes.names], dtype=np.int32)


def _check_assigned(name_of: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """InputError unless each value of the column has a site, and each value with a site is one of the column."""
    missing = {value: total for value, total in counts.items() if value not in name_of}
    if missing:
        raise InputError(
            f"--assign leaves {len(missing)} values ({sum(missing.values())} examples) without a hospital",
            hint="name each value in --assign; the data's own are not shown",
        )
    for value in name_of:
        if value not in counts:
            raise InputError(f"--assign names {value[:60]!r}, which is not a value of the column")


# --- a site's groups to sets --------------------------------------------------------------------------


def divide_into_sets(sizes: Ints, shares: Mapping[str, float], site: str) -> Ints:
    """The set number of each of a site's groups, given in order: each held-out set gets its share or a little more."""
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
