"""Synthetic sequences that a small model can learn in a minute: walks through an alphabet with a constant step.

For example, step 2 from ``a`` gives ``acegik…``. The first two characters determine all the others, but not the length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from artefacts.hashing import keyed_hashes
from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part
from pipeline.sources.synthetic.base import ALPHABET, SyntheticSource


@dataclass(frozen=True)
class PatternsSource(SyntheticSource):
    """Walks through the alphabet. Document N's first letter, step and length depend only on the seed, N and the ranges.

    Attributes:
        largest_step: maximum step between two letters.
        seed: the run's seed.
    """

    name: ClassVar[str] = "patterns"
    largest_step: int
    seed: int

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


def walk(start: int, step: int, length: int) -> str:
    """Return ``length`` letters. Start at index ``start`` of the alphabet, advance by ``step``, and wrap around."""
    letters = len(ALPHABET)
    # For any step, a walk repeats after ``len(ALPHABET)`` letters.
    period = "".join(ALPHABET[(start + index * step) % letters] for index in range(letters))
    return (period * (length // letters + 1))[:length]
