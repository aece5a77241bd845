"""What sources of made-up documents have in common: their number, their lengths, and parts that are ranges of them."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pipeline.sources.base import Part
from pipeline.sources.storage.files import File

ALPHABET = string.ascii_letters + string.digits
#: Text of a part, about.
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class SyntheticSource:
    """Documents of a length between two, all of which is in the recipe.

    Attributes:
        count: documents.
        min_chars: length of the shortest ones.
        max_chars: length of the longest ones.
    """

    name: ClassVar[str]
    count: int
    min_chars: int
    max_chars: int

    @property
    def warning(self) -> None:
        """Nothing."""

    @property
    def partition_scheme(self) -> str:
        return f"{self.name} by {self._part_documents}"

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Nothing: no files are read."""
        return {}

    def size(self, workers: int) -> int | None:
        """Bytes of all documents, about."""
        return self.count * self._mean_chars

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: (first document, documents)."""
        for first in range(0, self.count, self._part_documents):
            documents = min(self._part_documents, self.count - first)
            yield Part(documents * self._mean_chars, (first, documents))

    @property
    def _mean_chars(self) -> int:
        return (self.min_chars + self.max_chars) // 2

    @property
    def _part_documents(self) -> int:
        return max(1, _PART_BYTES // self._mean_chars)
