"""Plain text files, cut into documents."""

import codecs
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from artefacts.errors import RequestError
from artefacts.pages.formats import compact
from pipeline.document import Document
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES, Part
from pipeline.sources.chunking import Piece, pieces
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import encodings, files
from pipeline.sources.storage.compressed import decompressed
from pipeline.sources.storage.files import File

#: For texts that are read in blocks: bytes to decode at a time, and size of a part's documents in UTF-8 bytes.
_BLOCK_CHARS = 1 << 20
_CARRIED_BYTES = 16 << 20


class Carried(NamedTuple):
    """Documents from a text that was cut while the parts were created.

    Attributes:
        documents: (id, text, source) for each document.
        good: number of files that ended in this part and were read.
        faults: (reason, place, lost bytes) for the damaged files that ended in this part.
    """

    documents: tuple[tuple[str, str, str], ...]
    good: int
    faults: tuple[tuple[str, str, int], ...]


@dataclass
class _Reading:
    """The current state of reading a text in blocks.

    Attributes:
        stored: number of stored bytes read so far.
        chars: characters read so far.
        newlines: number of newlines at the end of the text so far, at most two.
        good: number of files read but not yet counted in a part.
        faults: (reason, place, lost bytes) for damaged files not yet counted in a part.
        begins: (offset of the first character, name) for the current file and for files that no document has reached.
    """

    stored: int = 0
    chars: int = 0
    newlines: int = 2
    good: int = 0
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    begins: deque[tuple[int, str]] = field(default_factory=deque)


@dataclass(frozen=True)
class TextSource(FileSource):
    """Text files. Unreadable inputs are counted by file.

    A worker reads a file in one piece if it is of moderate size or becomes a single document. If the file cannot be
    decoded, none of it is used. The process that creates the parts cuts longer files and merged files. If such a file
    is damaged or cannot be decoded, the text before that point is used.

    Attributes:
        path: file, folder, glob or URL of .txt, .text, .md or .rst files, optionally with .gz, .zst or .xz.
        chunk_chars: approximate length of a document. If it is 0, each file is one document.
        chunk: where a document may end (see ``pipeline.sources.chunking``).
        chunk_overlap: number of characters that a window shares with the previous one.
        merge: join all files into one text, with a blank line between files.
        encoding: encoding of the files. With UTF-8, UTF-16 with a byte order mark is accepted too.
    """

    chunk_chars: int
    chunk: Literal["paragraph", "sentence", "window"] = "paragraph"
    chunk_overlap: int = 0
    merge: bool = False
    encoding: str = encodings.UTF8

    endings: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md", ".rst")

    @property
    def partition_scheme(self) -> str:
        return f"{super().partition_scheme}, longer or merged files in {_CARRIED_BYTES}"

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. A part contains either files to read or ``Carried`` documents."""
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
        bad.bytes += part.size
        if isinstance(part.where[0], Carried):
            (carried,) = part.where
            bad.good += carried.good
            for fault in carried.faults:
                bad.add(*fault)
            yield from (Document(name, text, source, "text") for name, text, source in carried.documents)
            return
        for file in part.where:
            text = self._complete_text(file, bad)
            if text is None:
                continue
            # An empty file is an empty document, as an empty record would be.
            documents = pieces([text], self.chunk, self.chunk_chars, self.chunk_overlap) if text else [Piece(0, "")]
            for number, piece in enumerate(documents):
                yield Document(f"text:{file.name}:{number}", piece.text, file.name, "text")

    def _complete_text(self, file: File, bad: BadInputs) -> str | None:
        """Return a file's text up to the first damage, or None if none of it can be used."""
        damage: Exception | None = None
        content = b""
        try:
            with file.open() as raw, decompressed(raw, file.name) as stream:
                if fault := signatures.other_kind(signatures.peek(stream)):
                    bad.add(fault, file.name, file.size)
                    return None
                content, damage = files.up_to_damage(stream, MOST_BYTES)
                at = raw.tell()
        except files.DAMAGE as error:
            damage, at = error, 0
        if damage is not None:
            bad.add("unreadable file", f"{file.name}: {damage}", files.lost_bytes(file.size, at))
            if not content:
                return None
        if len(content) > MOST_BYTES:
            hint = ", decompressed" if self.chunk_chars else ": set chunk_chars"
            bad.add(f"longer than {compact(MOST_BYTES, 'B')}{hint}", file.name, file.size)
            return None
        try:
            text = decode(content, self.encoding, is_cut=damage is not None)
        except UnicodeError as error:
            where = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
            bad.add(encodings.fault(self.encoding), f"{file.name}: {where}", file.size)
            return None
        bad.good += 1
        return text

    def _carried(self, texts: list[File]) -> Iterator[Part]:
        """Join these files into one text, cut it into documents, and yield parts that contain the documents."""
        reading = _Reading()
        ready: list[tuple[str, str, str]] = []
        size = begun = 0
        blocks = _blocks(texts, reading, self.encoding)
        limited = blocks if self.chunk_chars else _limited(blocks, self.key)
        documents = pieces(limited, self.chunk, self.chunk_chars, self.chunk_overlap)
        for number, piece in enumerate(documents):
            source = _file_of(piece, reading)
            ready.append((f"text:{'merged' if self.merge else source}:{number}", piece.text, source))
            size += _utf8_bytes(piece.text)
            if size >= _CARRIED_BYTES:
                yield Part(reading.stored - begun, (_carry(ready, reading),), size)
                begun, ready, size = reading.stored, [], 0
        if ready or reading.good or reading.faults:
            yield Part(reading.stored - begun, (_carry(ready, reading),), size)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _limited(blocks: Iterator[str], key: str) -> Iterator[str]:
    """Yield the blocks of a text that becomes a single document, and check its size.

    Raises:
        RequestError: the text is too long.
    """
    size = 0
    for block in blocks:
        size += _utf8_bytes(block)
        if size > MOST_BYTES:
            limit = compact(MOST_BYTES, "B")
            raise RequestError(f"{key}.merge: the document is larger than {limit}: set {key}.chunk_chars")
        yield block


def _carry(ready: list[tuple[str, str, str]], reading: _Reading) -> Carried:
    carried = Carried(tuple(ready), reading.good, tuple(reading.faults))
    reading.good = 0
    reading.faults.clear()
    return carried


def _file_of(piece: Piece, reading: _Reading) -> str:
    """Return the name of the file in which a piece begins."""
    while len(reading.begins) > 1 and reading.begins[1][0] <= piece.offset:
        reading.begins.popleft()
    return reading.begins[0][1]


def _blocks(texts: list[File], reading: _Reading, encoding: str) -> Iterator[str]:
    """Yield the text of the files in blocks, with a blank line between files. Each file is read up to any damage."""
    for file in texts:
        before = reading.stored
        chars = at = read = 0
        try:
            with file.open() as raw, decompressed(raw, file.name) as stream:
                if fault := signatures.other_kind(signatures.peek(stream)):
                    reading.faults.append((fault, file.name, file.size))
                    reading.stored = before + file.size
                    continue
                try:
                    for block in _decoded(stream, encoding):
                        if not chars:
                            yield from _separated(file, reading)
                        chars += len(block)
                        reading.chars += len(block)
                        # The position moves back slightly if the reader hits damage ahead of a block.
                        read = max(read, min(raw.tell(), file.size))
                        reading.stored = before + read
                        reading.newlines = len(block[-2:]) - len(block[-2:].rstrip("\n"))
                        yield block
                except (*files.DAMAGE, UnicodeError):
                    at = raw.tell()
                    raise
        except files.DAMAGE as error:
            where = f"{file.name}: after {chars} characters: {error}"
            reading.faults.append(("unreadable file", where, files.lost_bytes(file.size, at)))
        except UnicodeError:
            where = f"{file.name}: within {_BLOCK_CHARS} characters after {chars}"
            reading.faults.append((encodings.fault(encoding), where, file.size - read))
        else:
            reading.good += not chars
        # A damaged file counts as read if any of its text was read.
        reading.good += chars > 0
        reading.stored = before + file.size


def _separated(file: File, reading: _Reading) -> Iterator[str]:
    """Yield the newlines needed for a blank line before a file, and record where the file begins."""
    between = "\n" * max(0, 2 - reading.newlines)
    reading.chars += len(between)
    reading.begins.append((reading.chars, file.name))
    if between:
        yield between


def _decoded(stream: Any, encoding: str) -> Iterator[str]:
    if encoding == encodings.UTF8:
        start = signatures.peek(stream)[:2]
        encoding = "utf-16" if start in _UTF16_MARKS else "utf-8-sig"
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    # Longer reads (such as a TextIOWrapper's) would lose the bytes before any damage.
    while block := stream.read1(_BLOCK_CHARS):
        if text := decoder.decode(block):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(content: bytes, encoding: str = encodings.UTF8, is_cut: bool = False) -> str:
    """Decode a file's text, and convert its newlines to LF.

    Args:
        content: the file's bytes.
        encoding: the file's encoding. With UTF-8, a byte order mark is allowed, as is UTF-16 with a byte order mark.
        is_cut: whether the content may end within a character, which is then dropped.

    Raises:
        UnicodeDecodeError: the content does not have this encoding.
        UnicodeError: the same, for some encodings other than UTF-8.
    """
    if encoding == encodings.UTF8:
        encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
        text = codecs.getincrementaldecoder(encoding)().decode(content) if is_cut else content.decode(encoding)
    else:
        # As when reading a stream, don't guess the byte order of UTF-16 without a byte order mark.
        text = codecs.getincrementaldecoder(encoding)().decode(content, not is_cut).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")
