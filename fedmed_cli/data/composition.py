"""What each site of a split is made of, for the record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data.disclosure import MIN_LABEL_COUNT
from fedmed_cli.data.partition import NOWHERE, SETS, Partition
from fedmed_cli.data.row_index import Codes, Index
from fedmed_cli.records.split import SiteCounts

MAX_LABELS = 10_000  # of all sites together, in the record


def count_sites(names: Sequence[str], index: Index, division: Partition) -> dict[str, SiteCounts]:
    """Each site's sets, labels and identifiers, and how far its labels are from those of all sites."""
    assignment = division.assignment
    site_of = np.where(assignment == NOWHERE, -1, assignment // len(SETS))
    pool = count_labels(index.label, site_of >= 0)
    sizes = np.bincount(assignment[site_of >= 0], minlength=len(names) * len(SETS)).reshape(-1, len(SETS)).tolist()
    result = {}
    for number, name in enumerate(names):
        chosen = site_of == number
        labels = count_labels(index.label, chosen)
        result[name] = SiteCounts(
            **dict(zip(SETS, sizes[number], strict=True)),
            labels=_keep_commonest(labels, max(1, MAX_LABELS // len(names))),
            jensen_shannon=round(jensen_shannon(labels, pool), 6),
            phi=index.identifiers.by_kind(chosen),
        )
    return result


def count_labels(codes: Codes | None, chosen: NDArray[np.bool_]) -> dict[str, int]:
    """Counts of the labels of the chosen rows; values seen fewer than 10 times are pooled as "other"."""
    if codes is None:
        total = int(chosen.sum())
        return {"none" if total >= MIN_LABEL_COUNT else "other": total} if total else {}
    counts: Counter[str] = Counter()
    for name, count in zip(codes.names, np.bincount(codes.codes[chosen], minlength=len(codes.names)), strict=True):
        if count:
            counts[(name or "none") if count >= MIN_LABEL_COUNT else "other"] += int(count)
    return dict(sorted(counts.items()))


def _keep_commonest(labels: Mapping[str, int], most: int) -> dict[str, int]:
    """The labels, the rarest pooled as "other" where there are more than `most`: a record has a largest size."""
    commonest = sorted(labels, key=lambda label: (-labels[label], label))[:most]
    pooled = Counter({label: labels[label] for label in commonest})
    pooled["other"] += sum(labels.values()) - pooled.total()
    return {label: count for label, count in sorted(pooled.items()) if count}


def jensen_shannon(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon distance between two histograms: 0 (equal) to 1 (disjoint); Endres & Schindelin 2003."""
    from scipy.special import rel_entr

    labels = sorted({*first, *second})
    p, q = (np.array([counts.get(label, 0) for label in labels]) / sum(counts.values()) for counts in (first, second))
    divergence = (rel_entr(p, (p + q) / 2).sum() + rel_entr(q, (p + q) / 2).sum()) / 2
    return math.sqrt(max(0.0, divergence / math.log(2)))  # rounding can leave less than 0
