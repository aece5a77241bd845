"""OpenWebText as it was published, whole or in pieces: archives within archives of one .txt a page.

- ``openwebtext.tar.xz``: a compressed tar of ``openwebtext/urlsf_subsetNN-M_data.xz``, each a compressed tar of pages;
- a folder of ``urlsf_subsetNN-M_data.xz``;
- a folder of ``subsets/urlsf_subsetNN.tar``, plain tars of the same;
- ``.7z`` archives of pages, or of the same.

Nothing is unpacked to disk. What can be entered anywhere (plain tars, files) is read in ranges by the workers. A
compressed outer archive is one stream: the process that makes the parts walks it once, and each part carries some of
its members as they are stored, for a worker to unpack.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, ClassVar, NamedTuple

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Part, file_source, files, seven_zip, tar
from pipeline.sources.file_source import FileSource
from pipeline.sources.files import File

#: Bytes of members that a part carries or covers.
_PART_BYTES = 16 << 20

#: Bytes read at a time where only headers are.
_HEADER_BYTES = 8 << 10

_DAMAGE = (*files.DAMAGE, tar.Damaged, seven_zip.Damaged)
_NOT_A_FILE = "not a regular file"


class Range(NamedTuple):
    """Members of a plain tar whose first header begins in [start, stop); stop None: to the end."""

    file: File
    start: int
    stop: int | None


class Content(NamedTuple):
    """A member of a solid archive: the archive's name, its own, its number there, and its bytes."""

    archive: str
    name: str
    position: int
    content: bytes


class Fault(NamedTuple):
    """What could not be read while a solid archive was walked."""

    reason: str
    where: str


@dataclass(frozen=True)
class OpenWebTextSource(FileSource):
    """Pages of the original archives; each page is one input.

    Attributes:
        path: file, folder, glob or URL of ``*_data.xz``, ``.tar`` (also .xz, .gz, .zst) or ``.7z``.
    """

    endings: ClassVar[tuple[str, ...]] = ("_data", ".tar", ".7z")

    @property
    def most_bytes(self) -> int:
        """Bytes of inner archives, or pages, of a part."""
        return file_source.part_bytes(self.size(1) or 0, _PART_BYTES)

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: ``File`` for a compressed tar of pages, ``Range``, ``Content`` and ``Fault`` pieces."""
        most = self.most_bytes
        group: list[tuple[int, File]] = []
        for file in self.files.values():
            own = None
            if file.name.lower().endswith(".7z"):
                own = _solid(_of_seven_zip(file), file.size, most)
            elif files.plain_name(file.name).endswith(".tar"):
                own = _solid(_of_tar(file), file.size, most) if file.is_compressed else _ranges(file, most)
            if own is None:
                group.append((file.size, file))
                continue
            yield from file_source.grouped(group, most)
            group = []
            yield from own
        yield from file_source.grouped(group, most)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        for piece in part.where:
            if isinstance(piece, Fault):
                bad.add(piece.reason, piece.where)
            elif isinstance(piece, Content):
                where = f"{piece.archive}/{piece.name}"
                yield from _pages(where, piece.position, piece.content, piece.archive, bad)
            else:
                yield from _guarded(piece, bad)


def _guarded(piece: File | Range, bad: BadInputs) -> Iterator[Document]:
    file = piece.file if isinstance(piece, Range) else piece
    try:
        if isinstance(piece, Range):
            with file.open() as stream:
                stream.seek(piece.start)
                yield from _range_pages(stream, piece, bad)
        else:
            with files.open_binary(file) as stream:
                yield from _inner_pages(stream, file.name, bad)
    except _DAMAGE as error:
        bad.add("unreadable file", f"{file.name}: {error}")


def _range_pages(stream: IO[bytes], piece: Range, bad: BadInputs) -> Iterator[Document]:
    archive = piece.file.name
    for member in tar.members(stream, piece.start, piece.stop):
        if fault := _fault(member, archive):
            bad.add(*fault)
        elif member.content is not None:
            yield from _pages(f"{archive}/{member.name}", member.offset, member.content, archive, bad)


def _fault(member: tar.Member, archive: str) -> Fault | None:
    if member.is_folder or (member.is_file and member.content is not None):
        return None
    where = f"{archive}/{member.name}"
    return Fault("larger than a member may be", where) if member.is_file else Fault(_NOT_A_FILE, where)


def _pages(where: str, position: int, content: bytes, archive: str, bad: BadInputs) -> Iterator[Document]:
    """Pages of a member of an outer archive: a page itself, or a compressed tar of pages; others are passed over."""
    if where.endswith(".txt"):
        yield from _page(where, position, content, archive, bad)
    elif where.endswith(".xz"):
        try:
            yield from _inner_pages(files.decompressed(io.BytesIO(content), where), where, bad)
        except _DAMAGE as error:
            bad.add("unreadable file", f"{where}: {error}")


def _inner_pages(stream: IO[bytes], name: str, bad: BadInputs) -> Iterator[Document]:
    for position, member in enumerate(tar.members(stream)):
        where = f"{name}/{member.name}"
        if fault := _fault(member, name):
            bad.add(*fault)
        elif member.content is not None and where.endswith(".txt"):
            yield from _page(where, position, member.content, name, bad)


def _page(where: str, position: int, content: bytes, source: str, bad: BadInputs) -> Iterator[Document]:
    """The document of a page; its position makes its id unique where a name comes twice."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        bad.add("invalid UTF-8", f"{where}: byte {error.start}")
        return
    bad.good += 1
    yield Document(f"openwebtext:{where}:{position}", text, source, "text")


def _ranges(file: File, most: int) -> Iterator[Part]:
    """Ranges of a plain tar, found by its headers; where they cannot be read, the last range ends in that place."""
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
    """(bytes of the archive read so far, member) of a compressed tar, to its end or where it breaks."""
    raw = file.open()
    with files.decompressed(raw, file.name) as stream:
        try:
            for position, member in enumerate(tar.members(stream)):
                if fault := _fault(member, file.name):
                    yield raw.tell(), fault
                elif member.content is not None and member.name.endswith((".xz", ".txt")):
                    yield raw.tell(), Content(file.name, member.name, position, member.content)
        except _DAMAGE as error:
            yield file.size, Fault("unreadable file", f"{file.name}: {error}")


def _of_seven_zip(file: File) -> Iterator[tuple[int, Content | Fault]]:
    with file.open() as stream, seven_zip.Members(stream, file.name) as members:
        try:
            for member in members:
                if not member.is_file:
                    yield member.read, Fault(_NOT_A_FILE, f"{file.name}/{member.name}")
                elif member.name.endswith((".xz", ".txt")):
                    yield member.read, Content(file.name, member.name, member.position, member.content)
        except seven_zip.Damaged as error:
            yield file.size, Fault("unreadable file", f"{file.name}: {error}")


def _solid(members: Iterator[tuple[int, Content | Fault]], stored: int, most: int) -> Iterator[Part]:
    """Parts that carry members of a solid archive of ``stored`` bytes."""
    group: list[Content | Fault] = []
    size = begun = read = 0
    for read, member in members:
        group.append(member)
        size += len(member.content) if isinstance(member, Content) else 0
        if size >= most:
            yield Part(min(read, stored) - begun, tuple(group))
            begun, group, size = min(read, stored), [], 0
    if group:
        yield Part(stored - begun, tuple(group))
