"""The base class of synthetic sources. Their parts are ranges of documents."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pipeline.sources.base import Part
from pipeline.sources.storage.files import File

ALPHABET = string.ascii_letters + string.digits
#: Approximate size of a part's text, in bytes.
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class SyntheticSource:
    """Documents that are computed from the recipe.

    Attributes:
        count: number of documents.
        min_chars: length of the shortest documents.
        max_chars: length of the longest documents.
    """

    name: ClassVar[str]
    count: int
    min_chars: int
    max_chars: int

    @property
    def warning(self) -> None:
        """No warning."""

    @property
    def partition_scheme(self) -> str:
        return f"{self.name} by {self._part_documents}"

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Return no inputs, because no files are read."""
        return {}

    def size(self, workers: int) -> int | None:
        """Return the approximate size of all documents in bytes."""
        return self.count * self._mean_chars

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part, as (first document, number of documents)."""
        for first in range(0, self.count, self._part_documents):
            documents = min(self._part_documents, self.count - first)
            yield Part(documents * self._mean_chars, (first, documents))

    @property
    def _mean_chars(self) -> int:
        return (self.min_chars + self.max_chars) // 2

    @property
    def _part_documents(self) -> int:
        return max(1, _PART_BYTES // self._mean_chars)
