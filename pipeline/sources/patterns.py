"""Made-up sequences that a small model learns in a minute: walks through an alphabet in equal steps, round and round.

A step of 2 from ``a`` is ``acegik…``. Two characters settle all that follow, but not where a document ends.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Part
from tokenizer.sample import keyed_hashes

ALPHABET = string.ascii_letters + string.digits
#: Text of a part, about.
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class PatternsSource:
    """Document N is a pure function of the seed, N and the ranges: its first letter, its step and its length.

    Attributes:
        count: documents.
        min_chars: length of the shortest documents.
        max_chars: length of the longest ones.
        largest_step: places in the alphabet from one letter to the next, at most.
        seed: the run's.
    """

    count: int
    min_chars: int
    max_chars: int
    largest_step: int
    seed: int

    @property
    def name(self) -> str:
        return "patterns"

    @property
    def remark(self) -> None:
        """Nothing."""

    @property
    def parting(self) -> str:
        return f"patterns by {self._part_documents}"

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
        numbers = range(first, first + documents)
        lengths = self.max_chars - self.min_chars + 1
        for number, drawn in zip(numbers, keyed_hashes(self.seed, "patterns", map(str, numbers)).tolist(), strict=True):
            drawn, start = divmod(drawn, len(ALPHABET))
            drawn, step = divmod(drawn, self.largest_step)
            bad.good += 1
            text = walk(start, 1 + step, self.min_chars + drawn % lengths)
            yield Document(f"patterns:{number}", text, "patterns", "pattern")

    def details(self) -> dict[str, Any]:
        return {"alphabet": ALPHABET}

    @property
    def _mean_chars(self) -> int:
        return (self.min_chars + self.max_chars) // 2

    @property
    def _part_documents(self) -> int:
        return max(1, _PART_BYTES // self._mean_chars)


def walk(start: int, step: int, length: int) -> str:
    """``length`` letters: the alphabet's letter ``start``, then each ``step`` after the one before, wrapping round."""
    letters = len(ALPHABET)
    # After as many letters as the alphabet has, a walk is back where it began, whatever its step.
    turn = "".join(ALPHABET[(start + place * step) % letters] for place in range(letters))
    return (turn * (length // letters + 1))[:length]
