"""The original OpenWebText archives: nested archives with one .txt file per page.

These layouts are supported:

- ``openwebtext.tar.xz``: a compressed tar of ``openwebtext/urlsf_subsetNN-M_data.xz``, each a compressed tar of pages
- a folder of ``urlsf_subsetNN-M_data.xz`` files
- a folder of ``subsets/urlsf_subsetNN.tar`` files, which are plain tars of ``_data.xz`` files
- ``.7z`` archives of pages or of ``_data.xz`` files

Nothing is unpacked to disk. Workers read ranges of plain tars. A compressed outer archive is a single stream. The
process that creates the parts reads it once. Each part contains some of the archive's members, which a worker
unpacks.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, ClassVar, NamedTuple

from artefacts.pages.formats import compact
from pipeline.document import Document
from pipeline.sources import file_source
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES, Part
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import files, seven_zip, tar
from pipeline.sources.storage.compressed import decompressed
from pipeline.sources.storage.files import File

#: Approximate total size of a part's members, in bytes.
_PART_BYTES = 16 << 20

#: Number of bytes to read at a time if only headers are needed.
_HEADER_BYTES = 8 << 10

_DAMAGE = (*files.DAMAGE, tar.Damaged, seven_zip.Damaged)
_NOT_A_FILE = "not a regular file"
_TOO_LARGE = f"a member larger than {compact(MOST_BYTES, 'B')}"


class Range(NamedTuple):
    """The members of a plain tar whose headers begin at bytes in [start, stop). None as ``stop`` means no limit."""

    file: File
    start: int
    stop: int | None


class Content(NamedTuple):
    """A member of a solid archive: the archive's name, and the member's name, position and content."""

    archive: str
    name: str
    position: int
    content: bytes


class Fault(NamedTuple):
    """An unreadable item in an archive: the reason, the location, and the number of stored bytes lost."""

    reason: str
    where: str
    lost: int = 0


@dataclass(frozen=True)
class OpenWebTextSource(FileSource):
    """Pages from the original archives. Unreadable inputs are counted by page.

    Attributes:
        path: file, folder, glob or URL of ``*_data.xz``, ``.tar`` (optionally with .xz, .gz or .zst) or ``.7z`` files.
    """

    endings: ClassVar[tuple[str, ...]] = ("_data", ".tar", ".7z")

    @property
    def most_bytes(self) -> int:
        """Approximate total size, in bytes, of the inner archives or pages in a part."""
        return file_source.part_bytes(self.size(1) or 0, _PART_BYTES)

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. A piece is a ``File`` (a compressed tar of pages), ``Range``, ``Content`` or ``Fault``."""
        most = self.most_bytes
        group: list[tuple[int, File]] = []
        for file in self.files.values():
            parts = None
            if file.name.lower().endswith(".7z"):
                parts = _solid(_of_seven_zip(file), file.size, most)
            elif files.plain_name(file.name).endswith(".tar"):
                parts = _solid(_of_tar(file), file.size, most) if file.is_compressed else _ranges(file, most)
            if parts is None:
                group.append((file.size, file))
                continue
            yield from file_source.grouped(group, most)
            group = []
            yield from parts
        yield from file_source.grouped(group, most)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.bytes += part.size
        for piece in part.where:
            if isinstance(piece, Fault):
                bad.add(*piece)
            elif isinstance(piece, Content):
                where = f"{piece.archive}/{piece.name}"
                yield from _pages(where, piece.position, piece.content, piece.archive, bad)
            elif isinstance(piece, Range):
                yield from files.guarded(piece.file, partial(_range_pages, piece, bad), bad, _DAMAGE, piece.stop)
            else:
                pages = partial(_inner_pages, piece.name, piece.size, bad)
                yield from files.guarded(piece, pages, bad, _DAMAGE)


def _range_pages(piece: Range, bad: BadInputs, stream: IO[bytes]) -> Iterator[Document]:
    archive = piece.file.name
    stream.seek(piece.start)
    for member in tar.members(stream, piece.start, piece.stop):
        if fault := _fault(member, archive, member.end - member.offset):
            bad.add(*fault)
        elif member.content is not None:
            yield from _pages(f"{archive}/{member.name}", member.offset, member.content, archive, bad)


def _fault(member: tar.Member, archive: str, stored: int) -> Fault | None:
    """Return why a member of ``stored`` bytes cannot be used, or None if it can."""
    if member.is_folder or (member.is_file and member.content is not None):
        return None
    where = f"{archive}/{member.name}"
    return Fault(_TOO_LARGE, where, stored) if member.is_file else Fault(_NOT_A_FILE, where)


def _pages(where: str, position: int, content: bytes, archive: str, bad: BadInputs) -> Iterator[Document]:
    """Yield the pages in a member of an outer archive, if the member is a page or a compressed tar of pages."""
    if where.endswith(".txt"):
        yield from _page(where, position, content, archive, bad)
    elif where.endswith(".xz"):
        pages = partial(_inner_pages, where, len(content), bad)
        yield from files.guarded_stream(io.BytesIO(content), where, len(content), pages, bad, _DAMAGE)


def _inner_pages(name: str, stored: int, bad: BadInputs, stream: IO[bytes]) -> Iterator[Document]:
    for position, member in enumerate(tar.members(stream)):
        where = f"{name}/{member.name}"
        if fault := _fault(member, name, min(member.end - member.offset, stored)):
            bad.add(*fault)
        elif member.content is not None and where.endswith(".txt"):
            yield from _page(where, position, member.content, name, bad)


def _page(where: str, position: int, content: bytes, source: str, bad: BadInputs) -> Iterator[Document]:
    """Yield a page's document. The position makes the id unique even if a name occurs twice."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        bad.add("invalid UTF-8", f"{where}: byte {error.start}")
        return
    bad.good += 1
    yield Document(f"openwebtext:{where}:{position}", text, source, "text")


def _ranges(file: File, most: int) -> Iterator[Part]:
    """Divide a plain tar into ranges of members. If a header cannot be read, the last range includes the rest."""
    start = end = 0
    broken = False
    try:
        with file.open(_HEADER_BYTES) as stream:
            for member in tar.members(stream, contents=False):
                if member.end - start > most and member.offset > start:
                    yield Part(member.offset - start, (Range(file, start, member.offset),))
                    start = member.offset
                end = member.end
    except _DAMAGE:
        broken = True
    if broken or end > start:
        yield Part(file.size - start, (Range(file, start, None),))


def _of_tar(file: File) -> Iterator[tuple[int, Content | Fault]]:
    """Yield (bytes of the archive read so far, member) for a compressed tar, up to its end or the first damage."""
    before = read = at = 0
    try:
        with file.open() as raw, decompressed(raw, file.name) as stream:
            try:
                for position, member in enumerate(tar.members(stream)):
                    # The position moves back slightly if the reader hits damage ahead of a member.
                    before, read = read, max(read, raw.tell())
                    if fault := _fault(member, file.name, read - before):
                        yield read, fault
                    elif member.content is not None and member.name.endswith((".xz", ".txt")):
                        yield read, Content(file.name, member.name, position, member.content)
            finally:
                at = raw.tell()
    except _DAMAGE as error:
        yield file.size, Fault("unreadable file", f"{file.name}: {error}", files.lost_bytes(file.size, at))


def _of_seven_zip(file: File) -> Iterator[tuple[int, Content | Fault]]:
    before = read = 0
    try:
        with file.open() as stream, seven_zip.Members(stream, file.name) as members:
            for member in members:
                before, read = read, member.read
                where = f"{file.name}/{member.name}"
                if member.too_large:
                    yield read, Fault(_TOO_LARGE, where, max(read - before, 0))
                elif not member.is_file:
                    yield read, Fault(_NOT_A_FILE, where)
                elif member.name.endswith((".xz", ".txt")):
                    yield read, Content(file.name, member.name, member.position, member.content)
    except _DAMAGE as error:
        yield file.size, Fault("unreadable file", f"{file.name}: {error}", files.lost_bytes(file.size, read))


def _solid(members: Iterator[tuple[int, Content | Fault]], stored: int, most: int) -> Iterator[Part]:
    """Group the members of a solid archive into parts that contain the members' bytes.

    ``stored`` is the archive's size in bytes.
    """
    group: list[Content | Fault] = []
    size = begun = read = 0
    for read, member in members:
        group.append(member)
        size += len(member.content) if isinstance(member, Content) else 0
        if size >= most:
            yield Part(min(read, stored) - begun, tuple(group), size)
            begun, group, size = min(read, stored), [], 0
    if group:
        yield Part(stored - begun, tuple(group), size)
