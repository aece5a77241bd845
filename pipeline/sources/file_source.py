"""The base class of sources that read files. It lists the files and divides them into parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

from pipeline.sources.base import KEY, Part
from pipeline.sources.storage import files
from pipeline.sources.storage.files import File, Listing

#: Maximum bytes per part. Larger files are divided if possible, and smaller files are grouped.
PART_BYTES = 64 << 20
#: The same for compressed files.
COMPRESSED_PART_BYTES = 16 << 20
#: A small source is divided into about this many parts, so that several processes have work. Parts are at least 1/32 of
#: the maximum size.
_PARTS = 32


def part_bytes(total: int, most: int) -> int:
    """Return how many stored bytes a part of a source of ``total`` bytes may have. The result is at most ``most``."""
    return min(most, max(total // _PARTS, most // _PARTS, 1))


@dataclass(frozen=True)
class FileSource:
    """A source that reads files.

    Attributes:
        path: file, folder, glob or URL.
        key: the source's recipe key, for messages.
    """

    path: str
    key: str = field(default=KEY, kw_only=True)

    #: Suffixes of the files to read in a folder, not counting compression suffixes.
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
        return f"{self.key}.path: ignored {count} with other endings, for example {ignored[0]}"

    @property
    def most_bytes(self) -> int:
        """Maximum stored bytes per part."""
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
        """Omit the list of files, which may be long. Parts hold their own files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def grouped(pieces: Iterable[tuple[int, Any]], most: int) -> Iterator[Part]:
    """Group (bytes, piece) pairs, in order, into parts of up to ``most`` bytes."""
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
