"""Measure how many word sequences of held-out documents also occur in training text (see ``pipeline/ngrams.py``)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts import atomic
from artefacts.hashing import Hashes
from pipeline.ngrams import Known, sequences

_PAIR = np.dtype([("owner", np.int64), ("hash", np.uint64)])


class HeldOut:
    """The distinct word sequences of the held-out documents, and which of them also occur in training documents.

    Attributes:
        words: length of a sequence in words.
        thinned: one in 2**thinned sequences is compared. Sequences are chosen by their hash, so the choice is the same
            in every text.
        distinct: sorted distinct hashes of the sequences.
    """

    def __init__(self, owners: NDArray[np.int64], hashes: Hashes, documents: int, words: int, thinned: int) -> None:
        """Initialize from the number of documents and the distinct (document, sequence) pairs, as parallel arrays."""
        self._owners, self._hashes, self._documents = owners, hashes, documents
        self.words, self.thinned = words, thinned
        self._known = Known(hashes)
        self.distinct = self._known.distinct
        self._seen = np.zeros(len(self.distinct), dtype=bool)

    @classmethod
    def of(cls, columns: Iterable[pyarrow.ChunkedArray], words: int, thinned: int = 0) -> "HeldOut":
        """Collect the word sequences of the held-out texts. The columns contain the texts, in order."""
        documents = 0
        parts = [np.zeros(0, _PAIR)]
        for column in columns:
            hashes, owners = _thinned(*sequences(column, words), thinned)
            pairs = np.zeros(len(hashes), _PAIR)
            pairs["owner"], pairs["hash"] = owners + documents, hashes
            parts.append(np.unique(pairs))
            documents += len(column)
        distinct = np.concatenate(parts)
        return cls(distinct["owner"], distinct["hash"], documents, words, thinned)

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads. Marks are not saved."""
        partial = atomic.temp_path(path)
        facts = np.array([self._documents, self.words, self.thinned])
        with open(partial, "wb") as stream:
            np.savez(stream, owners=self._owners, hashes=self._hashes, facts=facts)
        atomic.rename_file(partial, path)

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        with np.load(path) as arrays:
            return cls(arrays["owners"], arrays["hashes"], *arrays["facts"].tolist())

    def shared(self, column: pyarrow.ChunkedArray) -> NDArray[np.int64]:
        """Return the indices (into ``distinct``) of the sequences that occur in a column of training texts."""
        hashes, _ = _thinned(*sequences(column, self.words), self.thinned)
        return np.unique(self._known.find(hashes)[1])

    def mark(self, indices: NDArray[np.int64]) -> None:
        """Mark sequences as occurring in training text. The indices come from ``shared``."""
        self._seen[indices] = True

    def overlap(self) -> NDArray[np.float64]:
        """Return, for each document, the fraction of its distinct sequences that also occur in training text.

        It is 0 for a document without sequences.
        """
        seen = self._seen[np.searchsorted(self.distinct, self._hashes)]
        total = np.bincount(self._owners, minlength=self._documents)
        return np.bincount(self._owners, seen, minlength=self._documents) / np.maximum(total, 1)


def _thinned(hashes: Hashes, owners: NDArray[np.int64], bits: int) -> tuple[Hashes, NDArray[np.int64]]:
    if not bits:
        return hashes, owners
    chosen = (hashes & np.uint64((1 << bits) - 1)) == 0
    return hashes[chosen], owners[chosen]
