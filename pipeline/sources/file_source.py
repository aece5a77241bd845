"""What the sources made of files share: finding, and how files are put together into parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

from pipeline.sources.base import KEY, Part
from pipeline.sources.storage import files
from pipeline.sources.storage.files import File, Listing

#: Bytes of a part, at most: larger files are divided where they can be, smaller ones put together.
PART_BYTES = 64 << 20
#: The same where the stored bytes are compressed.
COMPRESSED_PART_BYTES = 16 << 20
#: A small source has so many parts, so that several processes have work, but none below the 32nd part of the above.
_PARTS = 32


def part_bytes(total: int, most: int) -> int:
    """Stored bytes of a part of a source of ``total`` bytes, where ``most`` is the limit."""
    return min(most, max(total // _PARTS, most // _PARTS, 1))


@dataclass(frozen=True)
class FileSource:
    """Files of a path, folder, glob or URL.

    Attributes:
        path: where they are.
        key: the recipe's key of the source, for messages.
    """

    path: str
    key: str = field(default=KEY, kw_only=True)

    #: Endings of the files that are read below a folder, compressed or not.
    endings: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        return self.path

    @cached_property
    def _listing(self) -> Listing:
        return files.look(self.path, self.endings, f"{self.key}.path")

    @property
    def files(self) -> dict[str, File]:
        return self._listing.files

    @property
    def warning(self) -> str | None:
        if not (ignored := self._listing.ignored):
            return None
        count = f"{len(ignored):,} files" if len(ignored) > 1 else "1 file"
        return f"{self.key}.path: {count} of other endings ignored, for example {ignored[0]}"

    @property
    def most_bytes(self) -> int:
        """Stored bytes of a part."""
        compressed = any(file.is_compressed for file in self.files.values())
        return part_bytes(self.size(1) or 0, COMPRESSED_PART_BYTES if compressed else PART_BYTES)

    @property
    def partition_scheme(self) -> str:
        return f"{type(self).__name__} in {self.most_bytes} bytes"

    def inputs(self) -> dict[str, str | dict[str, File]]:
        return {"files": self.files}

    def size(self, workers: int) -> int | None:
        return sum(file.size for file in self.files.values())

    def details(self) -> dict[str, Any]:
        return {"files": len(self.files), "bytes": self.size(1), "ignored": len(self._listing.ignored)}

    def __getstate__(self) -> dict[str, Any]:
        """Without the list of files, which may be long: parts name their own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def grouped(pieces: Iterable[tuple[int, Any]], most: int) -> Iterator[Part]:
    """Parts of (bytes, piece) pairs, put together in order until they have ``most`` bytes."""
    group: list[Any] = []
    size = 0
    for piece_size, piece in pieces:
        if group and size + piece_size > most:
            yield Part(size, tuple(group))
            group, size = [], 0
        group.append(piece)
        size += piece_size
    if group:
        yield Part(size, tuple(group))
