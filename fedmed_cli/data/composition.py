"""What each site of a split is made of, for the record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data.disclosure import may_leave
from fedmed_cli.data.leakage_groups import Ints
from fedmed_cli.data.partition import NOWHERE, SETS, Partition
from fedmed_cli.data.row_index import Codes, Index
from fedmed_cli.records.split import SiteCounts

MAX_LABELS = 10_000  # of all sites together, in the record


def count_sites(
    names: Sequence[str], index: Index, division: Partition, has_patients: bool = True
) -> dict[str, SiteCounts]:
    """Each site's sets, labels and identifiers, and how far its labels are from those of all sites.

    Without patients, as in the bundled corpus, a label counts by its rows and not by its groups.
    """
    group_of = index.group_of if has_patients else np.arange(len(index), dtype=np.int32)
    assignment = division.assignment
    site_of = np.where(assignment == NOWHERE, -1, assignment // len(SETS))
    codes = index.label or Codes(np.zeros(len(index), dtype=np.int32), ("",))
    pool = count_rows(codes, site_of >= 0)
    sizes = np.bincount(assignment[site_of >= 0], minlength=len(names) * len(SETS)).reshape(-1, len(SETS)).tolist()
    result = {}
    for number, name in enumerate(names):
        chosen = site_of == number
        labels = count_labels(codes, group_of, chosen)
        result[name] = SiteCounts(
            **dict(zip(SETS, sizes[number], strict=True)),
            labels=_keep_commonest(labels, max(1, MAX_LABELS // len(names))),
            jensen_shannon=round(jensen_shannon(count_rows(codes, chosen), pool), 6),
            phi=index.identifiers.by_kind(chosen),
        )
    return result


def count_rows(codes: Codes, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the chosen rows have each label."""
    return np.bincount(codes.codes[chosen], minlength=len(codes.names))


def count_labels(codes: Codes, group_of: Ints, chosen: NDArray[np.bool_]) -> dict[str, int]:
    """Counts of the labels of the chosen rows; those that may not leave are pooled as "other"."""
    labels, groups = codes.codes[chosen], group_of[chosen]
    num_rows = count_rows(codes, chosen).tolist()
    pairs = np.unique(labels.astype(np.int64) * len(group_of) + groups)
    num_groups = np.bincount(pairs // len(group_of), minlength=len(codes.names)).tolist()
    counts: Counter[str] = Counter()
    for name, rows, of_groups in zip(codes.names, num_rows, num_groups, strict=True):
        counts[(name or "none") if may_leave(name, of_groups) else "other"] += rows
    return {label: count for label, count in sorted(counts.items()) if count}


def _keep_commonest(labels: Mapping[str, int], most: int) -> dict[str, int]:
    """The labels, the rarest pooled as "other" where there are more than `most`: a record has a largest size."""
    commonest = sorted(labels, key=lambda label: (-labels[label], label))[:most]
    pooled = Counter({label: labels[label] for label in commonest})
    pooled["other"] += sum(labels.values()) - pooled.total()
    return {label: count for label, count in sorted(pooled.items()) if count}


def jensen_shannon(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Jensen-Shannon distance between two histograms: 0 (equal) to 1 (disjoint); Endres & Schindelin 2003.

    Of all labels, those too that are pooled as "other" in the record: one number tells of none.
    """
    from scipy.special import rel_entr

    p, q = first / first.sum(), second / second.sum()
    divergence = (rel_entr(p, (p + q) / 2).sum() + rel_entr(q, (p + q) / 2).sum()) / 2
    return math.sqrt(max(0.0, divergence / math.log(2)))  # rounding can leave less than 0
