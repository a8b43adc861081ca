"""Find texts that are nearly the same, by MinHash signatures and banding, in bounded memory.

Signatures come from the rensa library (R-MinHash); banding is that of Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3: two texts are compared where one band of three values is equal.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedmed_cli.data.leakage_groups import Ints, merge
from fedmed_cli.data.same_text import words

NUM_PERM = 64
BAND_ROWS = 3
NUM_BANDS = NUM_PERM // BAND_ROWS
SIMILARITY = 0.6
_NEIGHBOURS = 16  # how far two rows of the same band may be apart to be compared
_CHUNK = 200_000
_SEED = 7919
_MIX = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35], dtype=np.uint32)  # odd: a change of one value changes the sum


def tokens(question: str, answer: str) -> list[str]:
    """The words of an example and its pairs of neighbouring words, without regard to case and white space."""
    singles = words(f"{question} {answer}")
    return singles + list(map(operator.add, singles, singles[1:]))


class MinHashIndex:
    """Signatures of a stream of examples: 64 bytes a row in memory, 84 in files of `folder`.

    `other` takes another family of hash functions (C-MinHash, Li and Li 2021), for a check that shares none.
    """

    def __init__(self, folder: Path, other: bool = False) -> None:
        import rensa

        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"band-{number:02d}" for number in range(NUM_BANDS)]
        self._files = [path.open("wb") for path in self._paths]
        self._bytes = bytearray()
        self._digests = (rensa.CMinHash if other else rensa.RMinHash).digests_from_token_sets

    def add(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        sets = [tokens(question, answer) for question, answer in zip(questions, answers, strict=True)]
        values = np.array(self._digests(sets, NUM_PERM, _SEED), dtype=np.uint32).reshape(len(sets), NUM_PERM)
        self._bytes += (values & 0xFF).astype(np.uint8).tobytes()
        bands = values[:, : NUM_BANDS * BAND_ROWS].reshape(len(sets), NUM_BANDS, BAND_ROWS)
        keys = (bands * _MIX).sum(axis=2, dtype=np.uint32)
        for number, file in enumerate(self._files):
            file.write(keys[:, number].tobytes())

    def __len__(self) -> int:
        return len(self._bytes) // NUM_PERM

    def unite(self, group_of: Ints, similarity: float = SIMILARITY) -> tuple[Ints, int]:
        """`group_of` (a row's group, named by its first row) with the groups of near-duplicates joined.

        Two rows are near-duplicates where the estimated Jaccard similarity of their tokens is at least
        `similarity`. Returns the new groups and how many rows are near-duplicates of a row of another group.
        """
        is_duplicate = np.zeros(len(self), dtype=bool)
        for first, second in self._candidates():
            apart = group_of[first] != group_of[second]
            first, second = self._similar(first[apart], second[apart], similarity)
            is_duplicate[first] = is_duplicate[second] = True
            group_of = merge(group_of, first, second)
        return group_of, int(is_duplicate.sum())

    def pairs_across(self, place_of: Ints, similarity: float, most: int) -> tuple[Ints, Ints]:
        """Pairs of near-duplicates in different places, each pair once, at most `most`."""
        pairs = np.empty((0, 2), dtype=np.int32)
        for first, second in self._candidates():
            apart = place_of[first] != place_of[second]
            first, second = self._similar(first[apart], second[apart], similarity)
            new = np.sort(np.stack([first, second], axis=1), axis=1).astype(np.int32)
            pairs = np.unique(np.concatenate([pairs, new]), axis=0)
            if len(pairs) >= most:
                break
        return pairs[:most, 0], pairs[:most, 1]

    def _candidates(self) -> Iterator[tuple[Ints, Ints]]:
        """Pairs of rows with an equal band, near to each other in its sorted order, in chunks."""
        for file in self._files:
            file.close()
        for path in self._paths:
            keys = np.fromfile(path, dtype=np.uint32)
            order = np.argsort(keys, kind="stable").astype(np.int32)
            keys = keys[order]
            for distance in range(1, _NEIGHBOURS + 1):
                at = np.flatnonzero(keys[:-distance] == keys[distance:])
                for start in range(0, len(at), _CHUNK):
                    part = at[start : start + _CHUNK]
                    yield order[part], order[part + distance]

    def _similar(self, first: Ints, second: Ints, similarity: float) -> tuple[Ints, Ints]:
        """The pairs whose signatures agree in at least this share of their values."""
        signatures = np.frombuffer(self._bytes, dtype=np.uint8).reshape(-1, NUM_PERM)
        similar = (signatures[first] == signatures[second]).sum(axis=1) >= similarity * NUM_PERM
        return first[similar], second[similar]

    def close(self) -> None:
        """Remove the files."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)
