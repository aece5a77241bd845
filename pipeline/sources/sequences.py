"""Made-up sequences with a target: random letters, to be copied or written backwards."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.overlap import mix
from pipeline.sources import Part
from pipeline.sources.patterns import ALPHABET
from tokenizer.sample import keyed_hashes

#: Text of a part, about.
_PART_BYTES = 4 << 20
#: Letters that are drawn at a time.
_DRAWN = 1 << 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALPHABET = np.array(list(ALPHABET))


@dataclass(frozen=True)
class SequencesSource:
    """Document N is a pure function of the seed, N, the alphabet and the lengths; its target of its text.

    Attributes:
        count: documents.
        min_chars: length of the shortest ones.
        max_chars: length of the longest ones.
        symbols: letters that there are.
        task: what the target is.
        seed: the run's.
    """

    count: int
    min_chars: int
    max_chars: int
    symbols: int
    task: Literal["copy", "reverse"]
    seed: int

    @property
    def name(self) -> str:
        return "sequences"

    @property
    def remark(self) -> None:
        """Nothing."""

    @property
    def parting(self) -> str:
        return f"sequences by {self._part_documents}"

    def inputs(self) -> dict[str, str]:
        """Nothing: all of it is in the recipe."""
        return {}

    def size(self, workers: int) -> int | None:
        """Bytes of all documents, about."""
        return self.count * self._mean_chars

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: (first document, documents)."""
        for first in range(0, self.count, self._part_documents):
            documents = min(self._part_documents, self.count - first)
            yield Part(documents * self._mean_chars, (first, documents))

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        first, documents = part.where
        step = max(1, _DRAWN // self.max_chars)
        for start in range(first, first + documents, step):
            numbers = range(start, min(start + step, first + documents))
            for number, text in zip(numbers, self._texts(numbers), strict=True):
                bad.good += 1
                target = text if self.task == "copy" else text[::-1]
                yield Document(f"sequences:{number}", text, "sequences", "sequence", target)

    def details(self) -> dict[str, Any]:
        return {"alphabet": ALPHABET[: self.symbols]}

    def _texts(self, numbers: range) -> Iterator[str]:
        keys = keyed_hashes(self.seed, "sequences", map(str, numbers))[:, None]
        lengths = self.min_chars + _drawn(keys, 1)[:, 0] % np.uint64(self.max_chars - self.min_chars + 1)
        letters = _ALPHABET[_drawn(keys, self.max_chars + 1)[:, 1:] % np.uint64(self.symbols)]
        for row, length in zip(letters, lengths.tolist(), strict=True):
            yield "".join(row[:length])

    @property
    def _mean_chars(self) -> int:
        return (self.min_chars + self.max_chars) // 2

    @property
    def _part_documents(self) -> int:
        return max(1, _PART_BYTES // self._mean_chars)


def _drawn(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """[N, count] uniform numbers, a row for each key: the first few of a sequence that has no end (splitmix64)."""
    with np.errstate(over="ignore"):
        return mix(keys + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
