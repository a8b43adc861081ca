"""Leakage groups: rows that must not be divided, because they share a group or are the same text or nearly so.

A row's group is named by its first row: `group_of[row]`. Everything here works on numbers; no text is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Keys = NDArray[np.uint64]


def merge(group_of: Ints, first: NDArray[np.integer], second: NDArray[np.integer]) -> Ints:
    """Join the groups of the pairs of rows.

    Hooks the greater name to the lesser for all pairs at once, then shortens the paths, until nothing changes.
    """
    while True:
        a, b = group_of[first], group_of[second]
        apart = a != b
        if not apart.any():
            return group_of
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        group_of = group_of.copy()
        np.minimum.at(group_of, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = group_of[group_of]
            if np.array_equal(shorter, group_of):
                break
            group_of = shorter


def merge_equal(group_of: Ints, keys: Keys) -> Ints:
    """Join the groups of rows with the same key; a key of 0 joins nothing."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[order]
    at = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
    return merge(group_of, order[at], order[at + 1])


@dataclass(frozen=True)
class Groups:
    """Groups by number. `number[row]` is a row's group, `size[group]` its rows, `sequence` the order of the groups."""

    number: Ints
    size: Ints
    sequence: Ints

    def members(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows sorted by group, and where each group's rows start."""
        rows = np.argsort(self.number, kind="stable")
        return rows, np.concatenate([[0], np.cumsum(self.size, dtype=np.int64)])


def number_groups(group_of: Ints, order: Keys) -> Groups:
    """Groups numbered by their first rows, and sorted by the least `order` of their rows."""
    singles = np.arange(len(group_of), dtype=np.int32)
    if np.array_equal(group_of, singles):  # the common case of much data: no sorting
        sequence = np.argsort(order, kind="stable").astype(np.int32)
        return Groups(singles, np.ones(len(group_of), dtype=np.int32), sequence)
    firsts, number = np.unique(group_of, return_inverse=True)
    rows = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[rows], prepend=-1))
    least = np.minimum.reduceat(order[rows], starts)
    return Groups(
        number.astype(np.int32),
        np.bincount(number, minlength=len(firsts)).astype(np.int32),
        np.argsort(least, kind="stable").astype(np.int32),
    )
