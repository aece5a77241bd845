"""Synthetic sequences with a target: random letters to copy or reverse."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from artefacts.hashing import keyed_hashes, splitmix64
from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part
from pipeline.sources.synthetic.base import ALPHABET, SyntheticSource

#: Approximate number of random letters to generate at a time.
_DRAWN = 1 << 16
_ALPHABET = np.array(list(ALPHABET))


@dataclass(frozen=True)
class SequencesSource(SyntheticSource):
    """Random letters.

    Document N depends only on the seed, N, the alphabet and the lengths. Its target depends on its text.

    Attributes:
        symbols: number of letters in the alphabet.
        task: how the target is computed from the text.
        seed: the run's seed.
    """

    name: ClassVar[str] = "sequences"
    symbols: int
    task: Literal["copy", "reverse"]
    seed: int

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


def _drawn(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return uniform 64-bit numbers: the first ``count`` splitmix64 outputs for each key ([N, 1] -> [N, count])."""
    return splitmix64(keys, np.arange(1, count + 1, dtype=np.uint64))
