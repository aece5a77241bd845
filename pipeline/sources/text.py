"""Files of plain text, cut into documents."""

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, ClassVar, Literal, NamedTuple

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Part, file_source, files
from pipeline.sources.cut import Piece, pieces
from pipeline.sources.file_source import FileSource
from pipeline.sources.files import File

#: Characters of a block of a long text, and bytes of its documents in a part.
_BLOCK_CHARS = 1 << 20
_CARRIED_BYTES = 16 << 20


class Carried(NamedTuple):
    """Documents of a text that is cut as it is read, and what became of the files that ended there."""

    documents: tuple[tuple[str, str, str], ...]
    good: int
    faults: tuple[tuple[str, str], ...]


@dataclass
class _Reading:
    """How far a text that is read in blocks has come.

    Attributes:
        stored: bytes of the source read so far.
        begins: (character, file) where each file begins that no document has reached yet.
    """

    stored: int = 0
    chars: int = 0
    newlines: int = 2
    good: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    begins: deque[tuple[int, str]] = field(default_factory=deque)


@dataclass(frozen=True)
class TextSource(FileSource):
    """Text files of a path, folder, glob or URL; each is one input.

    A file of moderate length is read whole by the process that its part falls to, and is bad as a whole if any of it
    is. A longer one, and all files where they are merged, are cut where the parts are made; damage ends such a file.

    Attributes:
        path: file, folder, glob or URL of .txt, .text, .md or .rst, also .gz, .zst, .xz.
        chunk_chars: length of a document, about; 0: a file is a document.
        chunk: where a document may end, see ``pipeline.sources.cut``.
        chunk_overlap: characters that a window repeats of the one before it.
        merge: all files are one text, a blank line between two.
    """

    chunk_chars: int
    chunk: Literal["paragraph", "sentence", "window"] = "paragraph"
    chunk_overlap: int = 0
    merge: bool = False

    endings: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md", ".rst")

    @property
    def parting(self) -> str:
        return f"{super().parting}, longer or merged files in {_CARRIED_BYTES}"

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: files to be read, or ``Carried``."""
        group: list[tuple[int, File]] = []
        for file in () if self.merge else self.files.values():
            most = file_source.COMPRESSED_PART_BYTES if file.is_compressed else file_source.PART_BYTES
            if file.size <= most or not self.chunk_chars:
                group.append((file.size, file))
                continue
            yield from file_source.grouped(group, self.most_bytes)
            group = []
            yield from self._carried([file])
        yield from file_source.grouped(group, self.most_bytes)
        if self.merge:
            yield from self._carried(list(self.files.values()))

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        if isinstance(part.where[0], Carried):
            (carried,) = part.where
            bad.good += carried.good
            for reason, where in carried.faults:
                bad.add(reason, where)
            yield from (Document(name, text, source, "text") for name, text, source in carried.documents)
            return
        for file in part.where:
            try:
                with files.open_binary(file) as stream:
                    text = decode(stream.read())
            except files.DAMAGE as error:
                bad.add("unreadable file", f"{file.name}: {error}")
                continue
            except UnicodeDecodeError as error:
                bad.add("invalid UTF-8", f"{file.name}: byte {error.start}")
                continue
            bad.good += 1
            found = pieces([text], self.chunk, self.chunk_chars, self.chunk_overlap)
            for number, piece in enumerate(found):
                yield Document(f"text:{file.name}:{number}", piece.text, file.name, "text")

    def _carried(self, texts: list[File]) -> Iterator[Part]:
        """Parts of one text, made of files one after the other."""
        reading = _Reading()
        ready: list[tuple[str, str, str]] = []
        size = begun = 0
        found = pieces(_blocks(texts, reading), self.chunk, self.chunk_chars, self.chunk_overlap)
        for number, piece in enumerate(found):
            source = _file_of(piece, reading)
            ready.append((f"text:{'merged' if self.merge else source}:{number}", piece.text, source))
            size += len(piece.text)
            if size >= _CARRIED_BYTES:
                yield Part(reading.stored - begun, (_carry(ready, reading),))
                begun, ready, size = reading.stored, [], 0
        if ready or reading.good or reading.faults:
            yield Part(reading.stored - begun, (_carry(ready, reading),))


def _carry(ready: list[tuple[str, str, str]], reading: _Reading) -> Carried:
    made = Carried(tuple(ready), reading.good, tuple(reading.faults))
    reading.good = 0
    reading.faults.clear()
    return made


def _file_of(piece: Piece, reading: _Reading) -> str:
    """The file that a piece begins in."""
    while len(reading.begins) > 1 and reading.begins[1][0] <= piece.offset:
        reading.begins.popleft()
    return reading.begins[0][1]


def _blocks(texts: list[File], reading: _Reading) -> Iterator[str]:
    """The files' text, a blank line between two, in blocks; damage ends a file."""
    for file in texts:
        before = reading.stored
        chars = 0
        try:
            with file.open() as raw, files.decompressed(raw, file.name) as stream:
                for block in _decoded(stream):
                    if not chars:
                        yield from _separated(file, reading)
                    chars += len(block)
                    reading.chars += len(block)
                    reading.stored = before + min(raw.tell(), file.size)
                    reading.newlines = len(block[-2:]) - len(block[-2:].rstrip("\n"))
                    yield block
        except files.DAMAGE as error:
            reading.faults.append(("unreadable file", f"{file.name}: after {chars} characters: {error}"))
        except UnicodeDecodeError:
            reading.faults.append(("invalid UTF-8", f"{file.name}: within {_BLOCK_CHARS} characters after {chars}"))
        else:
            reading.good += 1
        reading.stored = before + file.size


def _separated(file: File, reading: _Reading) -> Iterator[str]:
    """What lacks of a blank line before a file, where another is before it."""
    between = "\n" * max(0, 2 - reading.newlines)
    reading.chars += len(between)
    reading.begins.append((reading.chars, file.name))
    if between:
        yield between


def _decoded(stream: IO[bytes]) -> Iterator[str]:
    start = stream.peek(2)[:2]  # type: ignore[attr-defined]
    text = io.TextIOWrapper(stream, "utf-16" if start in _UTF16_MARKS else "utf-8-sig")
    while block := text.read(_BLOCK_CHARS):
        yield block


_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(content: bytes) -> str:
    """Text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one; newlines as LF.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    utf16 = content.startswith(_UTF16_MARKS)
    return content.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
